"""The record of a publication: which entries are swapped, so that one that was cut off can be undone.

It is written before the first entry moves, and removed after the last one has. Folders are known by their inode, which
no rename changes. Knows folders, not what they hold.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from voxtile_build.errors import RepositoryError
from voxtile_build.repository.durable import replace_text, sync

FILE = ".journal.json"
OLD, NEW = ".old", ".undone"
"""Folders for entries that are taken out of the repository: replaced or removed ones, and new ones that are undone."""


@dataclass(frozen=True)
class Move:
    """One entry.

    Attributes:
        name: of the entry.
        old: inode of what is replaced or removed; None if nothing is.
        new: inode of what takes its place; None for an obsolete entry.
        withdrawn: whether it is taken away before any other entry moves, and comes back after all of them.
    """

    name: str
    old: int | None
    new: int | None
    withdrawn: bool = False


@dataclass(frozen=True)
class Journal:
    """The moves of one publication, in order, from the folder `work` into `repository`."""

    work: Path
    repository: Path
    moves: tuple[Move, ...]

    def write(self) -> None:
        """Write the record, so that it outlasts a power cut from here on."""
        for folder in (OLD, NEW):
            (self.work / folder).mkdir(exist_ok=True)
        replace_text(self.work / FILE, json.dumps({"moves": [asdict(move) for move in self.moves]}))
        sync(self.work.parent)

    def remove(self) -> None:
        """Remove the record: what is in the repository now stays."""
        sync(self.repository)
        (self.work / FILE).unlink()
        with contextlib.suppress(OSError):  # the record is gone; only a power cut could bring it back, and undo all
            sync(self.work)

    def parking(self, move: Move, inode: int) -> Path:
        """Where an entry goes that is taken out of the repository."""
        return self.work / (OLD if inode == move.old else NEW) / move.name

    def find(self, move: Move, inode: int) -> Path:
        """Where the entry with this inode lies, outside the repository.

        Raises:
            RepositoryError: nowhere.
        """
        for place in (self.work / move.name, self.parking(move, inode)):
            if inode_of(place) == inode:
                return place
        raise self.lost(move)

    def lost(self, move: Move) -> RepositoryError:
        """The error for an entry that somebody else moved."""
        return RepositoryError(
            f"{self.work}: expected the entries of a build that was cut off, found that {move.name} was moved by "
            f"somebody else; bring {self.repository} in order with what this folder holds, remove it, and build again"
        )


def read_journal(work: Path, repository: Path) -> Journal | None:
    """The record of a publication that was cut off; None if there is none.

    Raises:
        RepositoryError: there is one that cannot be read.
    """
    try:
        moves = json.loads((work / FILE).read_text(encoding="utf-8"))["moves"]
        return Journal(work, repository, tuple(Move(**move) for move in moves))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RepositoryError(
            f"{work}: expected the record {FILE} of a build that was cut off, found what cannot be read ({error}); "
            f"move entries that {repository} lacks back there, remove the folder, and build again"
        ) from None


def inode_of(path: Path) -> int | None:
    """The number of a folder, a file or a link; None if there is none."""
    try:
        return os.lstat(path).st_ino
    except FileNotFoundError:
        return None
