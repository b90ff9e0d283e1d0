"""What the package offers: every name and every error, without weight, and without what the extras bring."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import voxtile
from tests.support.commands import run
from voxtile import errors

OPTIONAL = ("typer", "rich", "click", "matplotlib", "scipy")
BLOCKED = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {OPTIONAL!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Block())
"""
"""Makes a Python in which nothing of the extras is installed."""


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", voxtile.__all__)
def test_every_name_that_is_offered_is_there_and_says_what_it_is(name: str) -> None:
    assert inspect.getdoc(getattr(voxtile, name))
    assert name in dir(voxtile)


def test_every_error_is_offered() -> None:
    classes = [one for one in vars(errors).values() if inspect.isclass(one)]
    defined = {one.__name__ for one in classes if issubclass(one, Exception)}
    assert defined <= set(voxtile.__all__)
    for name in defined:
        assert f"{name} " in (errors.__doc__ or ""), f"{name} is missing in the tree at the top of errors.py"


def test_a_name_that_is_not_offered() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        voxtile.nothing  # noqa: B018


def test_importing_is_quick_and_never_brings_torch() -> None:
    code = (
        "import time, sys; t = time.perf_counter(); import voxtile; s = time.perf_counter() - t; "
        "voxtile.Segmenter, voxtile.RemoteNetwork; import voxtile.cli.app; "
        "assert not {'torch', 'monai'} & set(sys.modules); print(s)"
    )
    done = python(code)
    assert float(done.stdout) < 0.3, done.stderr


def test_the_library_needs_nothing_of_the_extras() -> None:
    names = ", ".join(f"voxtile.{name}" for name in voxtile.__all__)
    done = python(f"{BLOCKED}\nimport voxtile\n{names}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_the_command_without_its_extra_says_what_to_install(missing: str) -> None:
    blocked = BLOCKED.replace(repr(OPTIONAL), repr((missing,)))
    done = python(f"{blocked}\nfrom voxtile.__main__ import main\nmain()", "models")
    assert done.returncode == 2
    assert done.stderr == f"voxtile: the command needs {missing}, which is not installed: pip install 'voxtile[cli]'\n"


def test_an_import_error_of_our_own_is_not_hidden() -> None:
    code = f"{BLOCKED.replace(repr(OPTIONAL), repr(('numpy',)))}\nfrom voxtile.__main__ import main\nmain()"
    assert "ModuleNotFoundError: No module named 'numpy'" in python(code, "models").stderr


def test_version() -> None:
    assert run("--version").stdout == f"voxtile {voxtile.__version__}\n"
    done = subprocess.run([sys.executable, "-m", "voxtile", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"voxtile {voxtile.__version__}\n"


def test_a_message_keeps_its_beginning_and_what_to_do_however_long_its_values_are() -> None:
    said = str(errors.InputError(f"scan.nii: expected 3 axes, found {'9, ' * 100_000}; extract a volume"))
    assert len(said) <= 4000
    assert said.startswith("scan.nii: expected 3 axes, found 9, 9")
    assert said.endswith("9, ; extract a volume")
