"""The list of a pool's patches: for each its digest and what the teacher found in it.

A line is written once its patch is on the disk, so that a run that is killed leaves a list of whole patches. Knows
neither images nor teachers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from voxtile_build.errors import SlimmingError
from voxtile_build.repository.durable import replace_text


@dataclass(frozen=True)
class Record:
    """A labelled patch.

    Attributes:
        patch: its number.
        sha256: of its image's and its target's bytes, as they are on the disk.
        voxels: of each class in the teacher's answer.
        mirrored: by axis, the overlap with the teacher's answer to the mirrored patch; empty: not asked.
    """

    patch: int
    sha256: str
    voxels: Sequence[int]
    mirrored: Mapping[str, Sequence[Sequence[int]]] = field(default_factory=dict)


class Records:
    """The file with a line of JSON for each patch, after one that says what pool it is."""

    def __init__(self, path: Path, pool: Mapping[str, Any]) -> None:
        self.path = path
        self._head = json.dumps(dict(pool))

    def read(self) -> list[Record]:
        """Every whole line; what a killed run left of its last one is ignored.

        Raises:
            SlimmingError: it is the list of another pool.
            OSError: the file cannot be read.
        """
        if not self.path.exists():
            return []
        head, *lines = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        if head != self._head:
            raise SlimmingError(
                f"{self.path.parent}: expected the patches of this run, found those of another one (other scans, "
                "teacher, seed, size or number); remove the folder, or give back what that run was given"
            )
        return [record for line in lines if (record := _parsed(line)) is not None]

    def write(self, records: Iterable[Record]) -> None:
        """Put the whole list in place at once.

        Raises:
            OSError: it cannot be written.
        """
        replace_text(self.path, "".join(f"{line}\n" for line in (self._head, *map(_line, records))))

    def add(self, record: Record) -> None:
        """Add a line.

        Raises:
            OSError: it cannot be written.
        """
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(f"{_line(record)}\n")


def _line(record: Record) -> str:
    return json.dumps(asdict(record))


def _parsed(line: str) -> Record | None:
    try:
        return Record(**json.loads(line))
    except (ValueError, TypeError):
        return None
