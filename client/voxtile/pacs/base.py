"""What every way to a PACS can do; knows nothing of how it speaks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from voxtile.errors import InputError
from voxtile.io.dicom.objects.files import File
from voxtile.io.dicom.objects.headers import readable
from voxtile.io.dicom.objects.quiet import quietly
from voxtile.pacs.address import Wanted
from voxtile.pacs.spool import Spool

UIDS = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")


@dataclass(frozen=True)
class Object:
    """A DICOM object in a file. Attributes: file; the UIDs of its class, itself, its series and its study."""

    file: Path
    sop_class: str
    instance: str
    series: str
    study: str

    def read(self) -> Any:
        """The whole object, as pydicom's Dataset.

        Raises:
            InputError: it cannot be read.
        """
        return _read(self.file)


class Pacs(Protocol):
    """A PACS. Each method raises `Passing` for what may pass, and VoxtileError for what does not."""

    def close(self) -> None:
        """Ends its connections."""

    def check(self) -> None:
        """Checks that it answers and lets this program in."""

    def count(self, wanted: Wanted) -> int | None:
        """How many objects it has of a study or series; None where it does not say. Raises InputError for none."""

    def fetch(self, wanted: Wanted, spool: Spool) -> None:
        """Brings the objects of a study or series into `spool`."""

    def holds(self, one: Object) -> bool | None:
        """Whether it has an object with this UID; None where it does not say."""

    def store(self, one: Object) -> None:
        """Stores an object; it is stored if this returns."""


def total(numbers: Sequence[Any]) -> int | None:
    """The sum of what a PACS says of each study or series with one UID; None where it does not say it of all."""
    said = [int(str(number)) for number in numbers if str(number).isdecimal()]
    return sum(said) if said and len(said) == len(numbers) else None


def object_of(file: Path) -> Object:
    """Looks at a file that is to be stored.

    Raises:
        InputError: it is no DICOM object, or lacks a UID.
    """
    header = _read(file, stop_before_pixels=True, specific_tags=list(UIDS))
    found = [str(header.get(name) or "") for name in UIDS]
    for name, value in zip(UIDS, found, strict=True):
        if not value:
            raise InputError(f"{file}: expected a DICOM object with {name}, found none; a PACS cannot take it")
    return Object(file, *found)


def _read(file: Path, **how: Any) -> Any:
    from pydicom import dcmread

    try:
        with quietly(), readable(File(str(file), path=file)) as stream:
            return dcmread(stream, **how)
    except InputError:
        raise
    except Exception:  # pydicom raises what it likes, and repeats what the object holds
        raise InputError(f"{file}: expected a DICOM object to store, found something else") from None
