"""The page of rooms: each folder of code, what it is for, its size, and what it imports. Read from the code alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
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

    Attributes:
        name: Its dotted name below the distribution, such as `chains.monai`.
        what: The first sentence of its docstring.
        files: How many files lie in the folder itself.
        lines: How many lines they have.
        imports: The rooms that its files import, as dotted names with the distribution.
    """

    name: str
    what: str
    files: int
    lines: int
    imports: frozenset[str]


def rooms_of(package: str) -> list[Room]:
    """Returns the rooms of a distribution, each below those that import it, folders of a folder below it."""
    return _ordered([_room(package, name, place) for name, place in _places(package).items()], package)


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
    """Returns what a room imports: first its own distribution's rooms, then others with their distribution's name."""
    own = [name.removeprefix(f"{package}.") for name in room.imports if name.startswith(f"{package}.")]
    return sorted(own) + sorted(name for name in room.imports if not name.startswith(f"{package}."))


@cache
def _places(package: str) -> dict[str, Path]:
    """Returns the folder or file of each room by its dotted name."""
    top = ROOT / DISTRIBUTIONS[package] / package
    folders = [file.parent for file in top.rglob("__init__.py") if file.parent != top]
    modules = [file for file in top.glob("*.py") if not file.stem.startswith("__")]
    return {".".join(place.relative_to(top).with_suffix("").parts): place for place in sorted([*folders, *modules])}


def _room(package: str, name: str, place: Path) -> Room:
    files = sorted(place.glob("*.py")) if place.is_dir() else [place]
    described = place / "__init__.py" if place.is_dir() else place
    imports = {room for file in files for room in _imports(file)} - {f"{package}.{name}"}
    lines = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)
    docstring = ast.get_docstring(ast.parse(described.read_text(encoding="utf-8")))
    return Room(name, first_sentence(docstring), len(files), lines, frozenset(imports))


def _imports(file: Path) -> Iterator[str]:
    """Yields the rooms that a file imports, functions' own imports included."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            yield from _room_of(name)


def _room_of(name: str) -> Iterator[str]:
    """Yields the innermost room that holds the module or name `name`, if any does."""
    package, *rest = name.split(".")
    if package in DISTRIBUTIONS:
        candidates = (".".join(rest[:length]) for length in range(len(rest), 0, -1))
        yield from islice((f"{package}.{one}" for one in candidates if one in _places(package)), 1)


def _ordered(rooms: list[Room], package: str) -> list[Room]:
    """Returns the rooms so that each stands above what it imports; where imports run in a circle, by name."""
    families: dict[str, list[Room]] = {}
    for room in rooms:
        families.setdefault(room.name.partition(".")[0], []).append(room)
    done = list[Room]()
    while families:
        imported = {
            _family(name, package) for family, some in families.items() for room in some for name in room.imports
            if _family(name, package) != family
        }  # fmt: skip
        free = [family for family in sorted(families) if family not in imported] or [min(families)]
        done += [room for family in free for room in families.pop(family)]
    return done


def _family(name: str, package: str) -> str:
    """Returns the outermost folder of a room of `package`, from its name with the distribution."""
    return name.removeprefix(f"{package}.").partition(".")[0] if name.startswith(f"{package}.") else ""
