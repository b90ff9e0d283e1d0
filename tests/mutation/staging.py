"""Lays out a copy of the three packages side by side, as mutmut wants it, with the settings for one group.

mutmut derives a module's name from its path, and our packages lie in the folders of three distributions. In the copy
they lie at the top, so that path and name agree. The work tree is never changed.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import tomllib

from tests.mutation.groups import DISTRIBUTIONS, ROOT, Group

COPIED = ("tests", "models")
"""Folders of the repository that tests read, beside the packages."""

NOT_COPIED = shutil.ignore_patterns("__pycache__", "*.egg-info")

NOT_MUTATED = (
    r"^\s*raise \w+\($",
    r"^\s*f?\"[^\"]*\"\)?$",
    r"^\s*log\.\w+\(",
    r"^\s*@",
)
"""Lines left as they are: what an error or a log line says is prose, and most changes of it change nothing."""


def module_name(module: Path) -> str:
    """Returns the dotted name of a module given by its path in the repository."""
    return ".".join(module.parts[1:]).removesuffix(".py")


def staged_path(module: Path) -> Path:
    """Returns where a module lies in the copy, relative to the copy."""
    return Path(*module.parts[1:])


def lay_out(stage: Path, group: Group) -> None:
    """Makes `stage` anew: a copy of the packages and tests, and a pyproject.toml for mutmut and pytest."""
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(parents=True)
    for distribution, package in DISTRIBUTIONS.items():
        shutil.copytree(ROOT / distribution / package, stage / package, ignore=NOT_COPIED)
    for folder in COPIED:
        shutil.copytree(ROOT / folder, stage / folder, ignore=NOT_COPIED)
    (stage / "pyproject.toml").write_text(_settings(group), encoding="utf-8")


def _settings(group: Group) -> str:
    pytest = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
    mutmut = {
        "source_paths": list(DISTRIBUTIONS.values()),
        "only_mutate": [str(staged_path(module)) for module in group.modules],
        "also_copy": [folder for folder in COPIED if folder != "tests"],
        "pytest_add_cli_args_test_selection": list(group.tests),
        "pytest_add_cli_args": ["-p", "no:cacheprovider", "-m", "not slow and not training"],
        "do_not_mutate_patterns": list(NOT_MUTATED),
        # torch and gRPC do not survive a fork of the process that has used them.
        "process_isolation": "forkserver",
        "use_git_change_detection": False,
        "timeout_multiplier": 5.0,
        "timeout_constant": 2.0,
    }
    return _table("tool.mutmut", mutmut) + _table("tool.pytest.ini_options", pytest)


def _table(name: str, values: dict[str, object]) -> str:
    """A table of strings, numbers, truth values and lists of strings: JSON's spelling of these is TOML's too."""
    return f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
