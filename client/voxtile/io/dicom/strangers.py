"""Tells which files beside DICOM objects may be slices that were lost: cut off, unreadable, empty, packed, damaged.

A slice that is missing at the end of a series shows in no geometry, so such a file is refused by its name. Files of
another kind (a README, a preview, what systems leave in folders) are none of them.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from dataclasses import dataclass

from voxtile.errors import InputError, VoxtileError
from voxtile.io.dicom.files import MARK, File, is_dicom
from voxtile.io.formats.packing import first_bytes, packing_of, unpacked

LOOKED_AT = 132 + 132
"""Bytes by which DICOM is told."""

PACKED_BYTES = 1 << 12
"""Bytes of a packed file that are enough to unpack the first LOOKED_AT."""

DICOM_ENDING = re.compile(
    r"\.(dcm|dicom|dic|dc3|ima|acr)(\.(part|partial|tmp|filepart|crdownload|download|gz|z|bz2|xz|zst|zip|7z))?~?$",
    re.IGNORECASE,
)
"""At the end of names of DICOM files, packed or still being fetched."""

OTHER_NAME = re.compile(
    r"\.(?=\w*[a-z])\w{1,8}~?$|^(DICOMDIR|README|LICEN[CS]E|VERSION|CHANGES|INDEX|LOCKFILE|_SUCCESS|DONE)$",
    re.IGNORECASE,
)
"""Names of files of another kind. What ends in a UID or a slice's number has no letters there."""

APPLE_DOUBLE = b"\0\x05\x16\x07"
"""How files begin in which macOS keeps what else it knows of the file beside it."""


@dataclass(frozen=True)
class Stranger:
    """A file that is no DICOM object.

    Attributes:
        name: what messages call it.
        found: what it is, in words.
        broken: whether it may be what is left of any file: it cannot be read, or says nothing.
        marked: whether it surely is one, damaged or packed.
    """

    name: str
    found: str
    broken: bool = False
    marked: bool = False

    @property
    def error(self) -> InputError:
        """Why a folder with such a file is refused."""
        if self.marked:
            return InputError(f"{self.name}: {self.found}")
        return InputError(
            f"{self.name}: {self.found}; it may be a slice of the scan: fetch it again, or remove it if it is none"
        )

    @property
    def shape(self) -> str:
        """Its name with all numbers alike."""
        return shape_of(self.name)


def shape_of(name: str) -> str:
    """A file's name with all numbers in its last part alike: what the slices of a folder have in common."""
    folder, _, last = name.rpartition("/")
    return f"{folder}/{re.sub(r'[0-9]+', '0', last)}"


def stranger_of(file: File) -> Stranger | None:
    """What a file is that is no DICOM object; None for one that is. Only its beginning is read."""
    if file.is_special:
        return Stranger(file.name, "is no plain file")
    try:
        first = file.first(LOOKED_AT)
    except InputError as error:
        return Stranger(file.name, _reason(file, error), broken=True)
    if is_dicom(first):
        return None
    if not first.strip(b"\0"):
        return Stranger(file.name, "is empty" if not first else "begins with nothing but zeros", broken=True)
    packing = packing_of(first)
    if packing is not None and _is_packed_dicom(file):
        return Stranger(file.name, f"is packed by {packing.name}; unpack it", marked=True)
    return Stranger(file.name, "is no DICOM object" if first[:4] != APPLE_DOUBLE else "")


def damaged_stranger(file: File, error: InputError) -> Stranger:
    """What a file is that begins as DICOM does, and has no header that can be read: `error` says why."""
    marked = file.first(LOOKED_AT)[MARK] == b"DICM"
    return Stranger(file.name, _reason(file, error), broken=True, marked=marked)


def _reason(file: File, error: InputError) -> str:
    return str(error).removeprefix(f"{file.name}: ")


def _is_packed_dicom(file: File) -> bool:
    start = io.BytesIO(file.first(PACKED_BYTES))
    packing = packing_of(start.getvalue())
    try:
        with unpacked(start, packing, file.name) as stream:
            return is_dicom(first_bytes(stream, LOOKED_AT))
    except (VoxtileError, OSError):  # damaged, or of a packing for which nothing is installed
        return False


def lost(strangers: Iterable[Stranger], objects: Iterable[str]) -> list[Stranger]:
    """Returns those of `strangers` that may be slices, by their names beside those of DICOM `objects`."""
    shapes = {shape_of(name) for name in objects}
    return [one for one in strangers if one.found and _may_be_slice(one, shapes)]


def may_be_dicom(file: File) -> bool:
    """Whether a file is a DICOM object, packed or not, or says by its name that it was one."""
    stranger = stranger_of(file)
    return stranger is None or (bool(stranger.found) and _was_dicom(stranger))


def is_dicom_file(file: File) -> bool:
    """Whether a file is a DICOM object, packed or not."""
    stranger = stranger_of(file)
    return stranger is None or stranger.marked


def _may_be_slice(stranger: Stranger, shapes: set[str]) -> bool:
    if _was_dicom(stranger) or stranger.shape in shapes:
        return True
    return stranger.broken and OTHER_NAME.search(_last(stranger)) is None


def _was_dicom(stranger: Stranger) -> bool:
    return stranger.marked or DICOM_ENDING.search(_last(stranger)) is not None


def _last(stranger: Stranger) -> str:
    return stranger.name.rpartition("/")[2]
