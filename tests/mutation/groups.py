"""Reads `groups.toml`: which modules are mutated, and which tests have to notice. Knows nothing of mutants."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import tomllib

ROOT = Path(__file__).parents[2]
GROUPS = Path(__file__).with_name("groups.toml")
DISTRIBUTIONS = {"client": "voxtile", "build": "voxtile_build", "server": "voxtile_server"}
"""The package of each distribution, by the distribution's folder."""


@dataclass(frozen=True)
class Group:
    """Modules that the same tests cover.

    Attributes:
        name: the group's name.
        modules: paths of the modules, from the root of the repository.
        tests: paths or node ids of the tests, from the root of the repository.
    """

    name: str
    modules: tuple[Path, ...]
    tests: tuple[str, ...]


def read_groups() -> list[Group]:
    """Returns all groups.

    Raises:
        ValueError: a pattern names no module, or a test file does not exist.
    """
    described = tomllib.loads(GROUPS.read_text(encoding="utf-8"))
    return [
        Group(name, _modules(name, group["modules"]), _tests(name, group["tests"])) for name, group in described.items()
    ]


def chosen(groups: list[Group], wanted: list[str]) -> list[Group]:
    """Returns the groups that hold the `wanted` modules, with these modules only; all where none is named.

    Args:
        groups: all groups.
        wanted: names of groups, or paths of modules, which may hold wildcards.

    Raises:
        ValueError: a name fits nothing.
    """
    if not wanted:
        return groups
    for name in wanted:
        if not any(name == group.name or _fits(module, name) for group in groups for module in group.modules):
            raise ValueError(
                f"{name!r} is neither a group nor a module of {GROUPS.relative_to(ROOT)}; name one of these"
            )
    kept = []
    for group in groups:
        modules = group.modules
        if group.name not in wanted:
            modules = tuple(module for module in modules if any(_fits(module, name) for name in wanted))
        if modules:
            kept.append(Group(group.name, modules, group.tests))
    return kept


def _fits(module: Path, name: str) -> bool:
    return fnmatch(str(module), name)


def _modules(group: str, patterns: list[str]) -> tuple[Path, ...]:
    found: list[Path] = []
    for pattern in patterns:
        paths = sorted(path for path in ROOT.glob(pattern) if path.name != "__init__.py")
        if not paths:
            raise ValueError(f"group {group!r} of {GROUPS.relative_to(ROOT)}: {pattern!r} names no module")
        found += [path.relative_to(ROOT) for path in paths]
    return tuple(dict.fromkeys(found))


def _tests(group: str, patterns: list[str]) -> tuple[str, ...]:
    found: list[str] = []
    for pattern in patterns:
        path, _, node = pattern.partition("::")
        files = sorted(file.relative_to(ROOT) for file in ROOT.glob(path))
        if not files:
            raise ValueError(f"group {group!r} of {GROUPS.relative_to(ROOT)}: there is no test file {path!r}")
        found += [f"{file}::{node}" if node else str(file) for file in files]
    return tuple(dict.fromkeys(found))
