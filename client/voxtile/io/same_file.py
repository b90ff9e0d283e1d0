"""Says whether two paths are one file, however they are spelled: links, `..`, mounts, capitals where these are equal.

Knows nothing of what is in a file.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Hashable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from voxtile.errors import OutputError
from voxtile.io.atomic import hidden_name


class KnownFiles:
    """A set of files, each with a word for what it is; files that do not exist yet are told apart too."""

    def __init__(self) -> None:
        self._exact: dict[Hashable, str] = {}
        self._alike: dict[Hashable, list[tuple[str, str]]] = {}
        self._folders: dict[Path, Hashable] = {}

    def add(self, path: Path, what: str) -> None:
        """Adds a file; `what` is what `find` then returns for it."""
        folder, name = self._place(path)
        for key in _keys(path, folder, name):
            self._exact.setdefault(key, what)
        self._alike.setdefault((folder, _folded(name)), []).append((name, what))

    def find(self, path: Path) -> str | None:
        """Returns what the same file was added as; None where it was not."""
        folder, name = self._place(path)
        for key in _keys(path, folder, name):
            if key in self._exact:
                return self._exact[key]
        for other, what in self._alike.get((folder, _folded(name)), ()):
            if _one_name(path, name, other):
                return what
        return None

    def _place(self, path: Path) -> tuple[Hashable, str]:
        """The folder in which a file really lies, and its name there; each folder is looked up once."""
        if os.path.islink(path) or path.name in ("", ".."):
            path = Path(os.path.realpath(path))
        if path.parent not in self._folders:
            real = os.path.realpath(path.parent)
            self._folders[path.parent] = _inode(real) or real
        return self._folders[path.parent], path.name


def check_outputs_apart(inputs: Sequence[Path], outputs: Iterable[tuple[str, Path]]) -> None:
    """Checks, before any work, that no output is an input or another output.

    Args:
        inputs: the files that are read.
        outputs: what each output is called, and its file.

    Raises:
        OutputError: one is.
    """
    known = KnownFiles()
    for path in inputs:
        known.add(path, f"the scan {path}")
    for what, path in outputs:
        other = known.find(path)
        if other is not None:
            raise OutputError(f"{path}: {what} would replace {other}, which is the same file; choose another name")
        known.add(path, what)


def same_folder(one: Path, other: Path) -> bool:
    """Whether two paths are one existing folder."""
    try:
        return one.samefile(other)
    except OSError:
        return False


def _keys(path: Path, folder: Hashable, name: str) -> list[Hashable]:
    inode = _inode(path)
    return [(folder, name), *([inode] if inode else [])]


def _inode(path: str | Path) -> Hashable:
    """Device and number of what is there; None where nothing is, or where the file system numbers no files."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if found.st_ino else None


def _folded(name: str) -> str:
    """Equal for two names that some file system takes for one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _one_name(path: Path, one: str, other: str) -> bool:
    """Asks the file system, with an empty file that is removed at once, whether it takes two names for one."""
    folder = Path(os.path.realpath(path)).parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    token = hidden_name()
    probe, spelled_otherwise = folder / f"{token}{one}", folder / f"{token}{other}"
    try:
        with probe.open("xb"):
            return spelled_otherwise.exists()
    except OSError:
        return True  # nothing can be written here, and the error of that comes later
    finally:
        with suppress(OSError):
            probe.unlink()
