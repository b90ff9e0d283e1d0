"""The page of rooms: each folder of code, what it is for, its size, and what it imports. Read from the code alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from docs.generate.markdown import code, first_sentence, table

ROOT = Path(__file__).parents[2]
DISTRIBUTIONS = {"voxtile": "client", "voxtile_build": "build", "voxtile_server": "server"}
INTRODUCTION = """\
# The rooms

The code is three distributions. `voxtile-build` imports `voxtile`; nothing else imports across. Each folder is a room:
the first sentence of its `__init__.py` says what it is for. The tables are made from the code's own imports, as is this
page; `python -m docs.generate rooms` prints it. Imports point down: a room imports only rooms that stand below it."""


@dataclass(frozen=True)
class Room:
    """A folder, or a module that stands alone at the top of a distribution.

    `name` is its dotted name below the distribution ("" for the distribution's own `__init__`), `imports` are the rooms
    of the three distributions that its files import, as dotted names with the distribution.
    """

    name: str
    what: str
    files: int
    lines: int
    imports: frozenset[str]


def rooms_of(package: str) -> list[Room]:
    """Returns the rooms of a distribution, each below those that import it."""
    top = ROOT / DISTRIBUTIONS[package] / package
    places = [path for path in sorted(top.iterdir()) if _is_room(path)]
    return _ordered([_room(package, path) for path in places], package)


def page() -> str:
    """Returns the page as Markdown."""
    return "\n\n".join([INTRODUCTION, *(_distribution(package) for package in DISTRIBUTIONS)]) + "\n"


def _distribution(package: str) -> str:
    rooms = rooms_of(package)
    rows = [
        (code(room.name), room.what, str(room.files), f"{room.lines:,}", ", ".join(map(code, _shown(room, package))))
        for room in rooms
    ]
    total = ("", "together", str(sum(room.files for room in rooms)), f"{sum(room.lines for room in rooms):,}", "")
    head = ("room", "what it is for", "files", "lines", "imports")
    return f"## {DISTRIBUTIONS[package]}/{package}\n\n{table(head, [*rows, total])}"


def _shown(room: Room, package: str) -> list[str]:
    """Returns what a room imports: names below its own distribution, other distributions in full."""
    own = {name.removeprefix(f"{package}.") for name in room.imports if name.startswith(f"{package}.")}
    return sorted(own - {room.name}) + sorted(name for name in room.imports if not name.startswith(f"{package}."))


def _is_room(path: Path) -> bool:
    if path.is_dir():
        return (path / "__init__.py").exists()
    return path.suffix == ".py" and path.stem not in ("__init__", "__main__")


def _room(package: str, path: Path) -> Room:
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    described = path / "__init__.py" if path.is_dir() else path
    imports = {name for file in files for name in _imports(file)}
    lines = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)
    docstring = ast.get_docstring(ast.parse(described.read_text(encoding="utf-8")))
    return Room(path.stem, first_sentence(docstring), len(files), lines, frozenset(imports - {f"{package}.{path.stem}"}))


def _imports(file: Path) -> Iterator[str]:
    """Yields the rooms that a file imports, functions' own imports included: `voxtile.tiling`, `voxtile_build.spec`."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            deeper = node.module in DISTRIBUTIONS
            names = [f"{node.module}.{alias.name}" if deeper else node.module for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package in DISTRIBUTIONS and rest:
                yield f"{package}.{rest.partition('.')[0]}"


def _ordered(rooms: list[Room], package: str) -> list[Room]:
    """Returns the rooms so that each stands above what it imports; where imports run in a circle, by name."""
    left, done = {room.name: room for room in rooms}, list[Room]()
    while left:
        imported = {name.removeprefix(f"{package}.") for room in left.values() for name in room.imports}
        free = [name for name in left if name not in imported] or [min(left)]
        done += [left.pop(name) for name in sorted(free)]
    return done
