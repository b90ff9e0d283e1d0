"""A folder of its own for what comes from a PACS: nobody else may look into it, and it is always removed.

Knows nothing of how objects come.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from voxtile.errors import InputError, OutputError
from voxtile.io.dicom.objects.files import File
from voxtile.io.dicom.objects.headers import read_header, text_of
from voxtile.io.dicom.objects.quiet import quietly
from voxtile.io.private_folder import private_folder
from voxtile.pacs.address import Address, Wanted

NAMES = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")


@dataclass
class Spool:
    """Objects that came. Attributes: folder: where they lie, one a file, numbered."""

    folder: Path
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def add(self, write: Callable[[IO[bytes]], Any]) -> None:
        """Makes one more file, which `write` fills.

        Raises:
            OutputError: it cannot be written.
        """
        try:
            with (self.folder / f"{next(self._numbers):06d}.dcm").open("xb") as file:
                write(file)
        except OSError as error:
            raise OutputError(f"{self.folder}: cannot be written ({error.strerror or type(error).__name__})") from None

    def clear(self) -> None:
        """Removes all that came."""
        for file in self.folder.iterdir():
            file.unlink()

    def check(self, address: Address, wanted: Wanted, told: int | None) -> None:
        """Checks that all came that was asked for, and nothing else.

        Args:
            address: the PACS.
            wanted: what was asked for.
            told: how many objects the PACS says that it has; None where it does not say.

        Raises:
            InputError: objects are missing, or are those of another study or series.
        """
        found = [_names(file, address) for file in sorted(self.folder.iterdir())]
        if any(study != wanted.study or wanted.series not in (None, series) for _, series, study in found):
            raise InputError(
                f"{address.name}: expected the objects of one {wanted.name}, found others among them; nothing is used"
            )
        came = len({instance for instance, _, _ in found})
        if came == 0:
            raise InputError(f"{address.name}: expected the objects of a {wanted.name}, found none")
        if told is not None and came < told:
            raise InputError(
                f"{address.name}: expected the {told} objects that it has of the {wanted.name}, found {came}; nothing "
                "is used. If it is still being received there, try again later"
            )


@contextlib.contextmanager
def spool() -> Iterator[Spool]:
    """Makes a spool in the folder for temporary files (`TMPDIR`) that only this user may read, and removes it.

    Raises:
        OutputError: it cannot be made.
    """
    with private_folder("pacs") as folder:
        yield Spool(folder)


def _names(file: Path, address: Address) -> tuple[str, str, str]:
    """The UIDs of an object, of its series and of its study."""
    try:
        with quietly():
            header = read_header(File(file.name, path=file))
            instance, series, study = (text_of(header, name) for name in NAMES)
    except InputError:
        header = None
    if not header:
        raise InputError(
            f"{address.name}: expected DICOM objects, found one that cannot be read among them; nothing is used"
        )
    return instance or file.name, series, study
