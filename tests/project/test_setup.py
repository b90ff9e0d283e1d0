"""`make setup` installs what the tests were run with, whatever has been released since."""

from __future__ import annotations

import importlib.metadata
import itertools
import re
from pathlib import Path

import tomllib
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
OURS = {"voxtile", "voxtile-build", "voxtile-server"}
"""What `make setup` installs from this checkout."""


def test_setup_leaves_no_version_open() -> None:
    files = re.findall(r"--(?:requirement|constraint) (\S+)", (ROOT / "Makefile").read_text())
    assert {"requirements-dev.txt", "requirements-nnunet.txt", "constraints.txt"} == set(files)
    pinned = {canonicalize_name(one.name): one for file in files for one in pins_of(ROOT / file)}
    for file in ("client", "build", "server"):
        wanted = list(map(Requirement, wanted_by(ROOT / file / "pyproject.toml")))
        pinned |= {canonicalize_name(one.name): one for one in wanted if exact(one)}
        assert {canonicalize_name(one.name) for one in wanted} - OURS <= pinned.keys()
    assert all(canonicalize_name(one.name) in pinned for one in requirements_of(ROOT / "requirements-dev.txt"))
    for one in pinned.values():
        assert one.specifier.contains(importlib.metadata.version(one.name), prereleases=True), one


def wanted_by(file: Path) -> list[str]:
    """The requirements of a distribution, those of its extras with them."""
    project = tomllib.loads(file.read_text())["project"]
    return [*project["dependencies"], *itertools.chain(*project.get("optional-dependencies", {}).values())]


def requirements_of(file: Path) -> list[Requirement]:
    lines = (line.partition("#")[0].strip() for line in file.read_text().splitlines())
    return [Requirement(line) for line in lines if line]


def pins_of(file: Path) -> list[Requirement]:
    return [one for one in requirements_of(file) if exact(one)]


def exact(one: Requirement) -> bool:
    return any(part.operator == "==" and not part.version.endswith("*") for part in one.specifier)
