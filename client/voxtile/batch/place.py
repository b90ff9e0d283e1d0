"""Where the files of cases are kept: in a folder of this machine, which is where they are written.

Another place is a `Place` that takes them from there. Knows nothing of cases.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from voxtile.batch.sums import sha256_of
from voxtile.errors import OutputError
from voxtile.io.atomic import check_replaceable


class Place:
    """A folder of this machine."""

    def begin(self, cases: Sequence[str]) -> None:
        """Looks at what earlier runs have recorded of cases; raises as `keep` does, and InputError."""

    def take(self, path: Path) -> None:
        """Takes a file that is written and belongs to no case; raises as `keep` does."""

    def checksum(self, case: str, suffix: str, path: Path) -> str | None:
        """The checksum of what has the name of a file; None where nothing has.

        Args:
            case: the case of which it is.
            suffix: the ending by which the case's record knows it.
            path: the file.

        Raises:
            OutputError: it is a folder, or cannot be read.
        """
        if not os.path.lexists(path):
            return None
        if path.is_dir():
            raise OutputError(f"{path}: expected the name of a file, found a folder; move it away")
        try:
            return sha256_of(path)
        except OSError as error:
            raise OutputError(f"{path}: cannot be read ({error.strerror or error}); move it away") from None

    def check_replaceable(self, path: Path) -> None:
        """Checks that a name is free, or has a file that may be replaced. Raises OutputError."""
        check_replaceable(path)

    def keep(self, case: str, files: Mapping[str, Path]) -> None:
        """Takes the files of a case, by their endings, which are written, and its record.

        Raises:
            OutputError: they cannot be kept.
            ServerUnavailable: who keeps them does not answer.
        """

    def keep_lines(self, text: bytes) -> None:
        """Takes lines that a shard writes, before they are written; raises as `keep` does."""

    def in_words(self, text: str) -> str:
        """A message in which files have the names that they have for the user."""
        return text


HERE = Place()
