"""Looks into packed files and archives that lie among DICOM objects: whether they hold some.

Little of them is unpacked, and nothing is taken from them: a message asks to unpack them.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from voxtile.errors import InputError, VoxtileError
from voxtile.io.dicom.objects.files import ARCHIVE_ERRORS, File, is_dicom, is_false_folder
from voxtile.io.formats.other_files import ANY_ENDING, is_other, named_other
from voxtile.io.formats.packing import Packing, first_bytes, packing_of, unpacked

PACKED_BYTES = 1 << 13
"""Bytes of a packed file that are unpacked at most to tell what it is."""

LOOKED_AT = 1 << 10
"""Bytes of what was unpacked by which it is told."""

MOST_MEMBERS = 20_000
"""Files of a zip that are looked at."""

MARKS = (
    ("7z", 0, b"7z\xbc\xaf\x27\x1c"),
    ("rar", 0, b"Rar!\x1a\x07"),
    ("tar", 257, b"ustar"),
    ("compress", 0, b"\x1f\x9d"),
    ("lzip", 0, b"LZIP"),
    ("lha", 2, b"-lh"),
    ("cpio", 0, b"070701"),
)
"""Archives that nothing here looks into: their names, and what stands where in them."""

ZIPS = (b"PK\3\4", b"PK\5\6", b"PK\7\x08")

UNPACK = "unpack it"
CLOSED = f"which is not looked into; {UNPACK}, or remove it if no slice is in it"

LIBRARIES = re.compile(r"\.(jar|war|docx|docm|dotx|xlsx|xlsm|pptx|od[tsp]|epub|whl|apk|xpi|npz|kmz)$", re.IGNORECASE)
"""Endings of zips that hold a program or a document."""


@dataclass(frozen=True)
class Packed:
    """A packed file.

    Attributes:
        holds: what is in it: DICOM, other things, or nobody knows; of one that is "closed" nobody can.
        found: what it is and what to do, in words.
    """

    holds: Literal["dicom", "other", "unknown", "closed"]
    found: str = "is no DICOM object"


def packed_in(file: File, first: bytes) -> Packed | None:
    """What a packed file is; None for one that is not packed.

    Args:
        file: the file.
        first: its beginning.
    """
    closed = next((name for name, place, mark in MARKS if first[place : place + len(mark)] == mark), None)
    if closed is not None:
        return Packed("closed", f"is a {closed} archive, {CLOSED}")
    if first.startswith(ZIPS):
        return _zip(file)
    packing = packing_of(first)
    return None if packing is None else _packed(file, packing)


def _packed(file: File, packing: Packing) -> Packed:
    try:
        start = io.BytesIO(file.first(PACKED_BYTES))
        with unpacked(start, packing, file.name) as stream:
            inside = first_bytes(stream, LOOKED_AT)
    except (VoxtileError, OSError):  # damaged, or of a packing for which nothing is installed
        inside = b""
    if is_dicom(inside):
        return Packed("dicom", f"is DICOM, packed by {packing.name}; {UNPACK}")
    if inside[257:262] == b"ustar":
        return Packed("closed", f"is a tar archive, packed by {packing.name}, {CLOSED}")
    stem = _last(file.name).rpartition(".")[0]
    if is_other(inside) or named_other(stem, empty=True):
        return Packed("other")
    return Packed("unknown", f"is packed by {packing.name}, and holds what is unknown; {UNPACK}")


def _zip(file: File) -> Packed:
    if file.path is None:  # its list of files lies at its end, and all of it would have to be unpacked
        if LIBRARIES.search(_last(file.name)):
            return Packed("other")
        return Packed("closed", f"is an archive in an archive, {CLOSED}")
    try:
        with zipfile.ZipFile(file.path) as archive:
            return _zip_holds(archive, file.name)
    except ARCHIVE_ERRORS:
        return Packed("unknown", f"is a zip archive that is damaged; {UNPACK}")


def _zip_holds(archive: zipfile.ZipFile, name: str) -> Packed:
    members: Iterable[zipfile.ZipInfo] = archive.infolist()
    for count, member in enumerate(members):
        if count == MOST_MEMBERS:
            return _closed(f"with more than {MOST_MEMBERS:,} files")
        last = _last(member.filename)
        if is_false_folder(member):
            return _closed("with data under the name of a folder")
        if named_other(last, empty=True) or not member.file_size or LIBRARIES.search(last):
            continue
        try:
            first = File(name, archive=archive, member=member).first(LOOKED_AT)
        except InputError:
            return _closed("with files that are encrypted, or cannot be read")
        if is_dicom(first):
            return Packed("dicom", f"is a zip archive that holds DICOM; {UNPACK}")
        mark = any(first[place : place + len(mark)] == mark for _, place, mark in MARKS)
        if first.startswith(ZIPS) or mark:
            return _closed("with an archive in it")
        if packing_of(first) is not None and not ANY_ENDING.search(last.rpartition(".")[0]):
            return _closed("with packed files in it")
    return Packed("other")


def _closed(what: str) -> Packed:
    return Packed("closed", f"is a zip archive {what}, {CLOSED}")


def _last(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2]
