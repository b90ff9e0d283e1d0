"""Tells which files beside DICOM objects may be slices that were lost: cut off, unreadable, empty, packed, damaged.

A slice that is missing at the end of a series shows in no geometry, so such a file is refused by its name. A file among
slices is harmless only if it is surely of another kind: a text, a picture, a document, a program.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from voxtile.errors import InputError
from voxtile.io.dicom.objects.files import MARK, File, is_dicom
from voxtile.io.dicom.objects.packed import UNPACK, packed_in
from voxtile.io.formats import other_files
from voxtile.io.formats.other_files import ANY_ENDING, is_other, named_other

LOOKED_AT = 132 + 132
"""Bytes by which DICOM is told."""

LEFT_BY_WORK = re.compile(
    r"(\.?~|\.(part|partial|tmp|temp|bak|back|backup|old|orig|save|saved|swp|new|copy|filepart|crdownload|opdownload"
    r"|download|gz|z|bz2|xz|lzma|zst|zip|7z|rar|tar|tgz|enc|gpg|aes|corrupt|damaged|broken|error|err|bad|failed"
    r"|incomplete|\d+))+$",
    re.IGNORECASE,
)
"""Endings that are put behind a file's own: while it is fetched, by who packs it, keeps a copy, or finds it damaged."""

DICOM_ENDING = re.compile(r"\.(dcm|dicom|dic|dc3|ima|acr)$", re.IGNORECASE)
"""At the end of names of DICOM files."""


APPLE_DOUBLE = b"\0\5\x16\7"
"""How files begin in which macOS keeps what else it knows of the file beside it."""


@dataclass(frozen=True)
class Stranger:
    """A file that is no DICOM object.

    Attributes:
        name: what messages call it.
        found: what it is, in words.
        known: whether its first bytes say that it is of another kind.
        silent: whether it has no bytes, or none that can be read.
        marked: whether it surely is DICOM, damaged or packed.
        closed: whether it is an archive that nobody looks into.
    """

    name: str
    found: str
    known: bool = False
    silent: bool = False
    marked: bool = False
    closed: bool = False

    @property
    def error(self) -> InputError:
        """Why a folder with such a file is refused."""
        if self.marked or self.closed:
            return InputError(f"{self.name}: {self.found}{'' if UNPACK in self.found else '; fetch it again'}")
        return InputError(
            f"{self.name}: {self.found}; it may be a slice of the scan: fetch it again, or remove it if it is none"
        )


def _shape(name: str) -> str:
    """A file's name with all numbers in its last part alike: what the slices of a folder have in common."""
    folder, _, last = name.rpartition("/")
    return f"{folder}/{re.sub(r'[0-9]+', '0', last)}"


def _stem(name: str) -> str:
    """A name without the endings that were put behind it. A number is such an ending, and a slice's own as well."""
    stem = LEFT_BY_WORK.sub("", name)
    return stem if stem and not stem.endswith("/") else name


def _ending(name: str) -> str:
    """The ending of a name, in small letters; empty for one without letters."""
    found = ANY_ENDING.search(name)
    return found.group().lower() if found else ""


def stranger_of(file: File) -> Stranger | None:
    """What a file is that is no DICOM object; None for one that is. Only its beginning is read."""
    if file.is_special:
        return Stranger(file.name, "is no plain file", known=True)
    try:
        first = file.first(LOOKED_AT)
        if is_dicom(first):
            return None
        first = file.first(other_files.LOOKED_AT)
    except InputError as error:
        return Stranger(file.name, _reason(file, error), silent=True)
    if not first.strip(b"\0"):
        found = "is empty" if not first else "begins with nothing but zeros"
        return Stranger(file.name, found, silent=not first)
    packed = packed_in(file, first)
    if packed is not None:
        holds = packed.holds
        return Stranger(file.name, packed.found, holds == "other", marked=holds == "dicom", closed=holds == "closed")
    return Stranger(file.name, "is no DICOM object" if first[:4] != APPLE_DOUBLE else "", is_other(first))


def damaged_stranger(file: File, error: InputError) -> Stranger:
    """What a file is that begins as DICOM does, and has no header that can be read: `error` says why."""
    return Stranger(file.name, _reason(file, error), marked=file.first(LOOKED_AT)[MARK] == b"DICM")


def _reason(file: File, error: InputError) -> str:
    return str(error).removeprefix(f"{file.name}: ").removesuffix("; fetch it again")


def lost(strangers: Iterable[Stranger], objects: Iterable[str]) -> list[Stranger]:
    """Returns those of `strangers` that may be slices, by what they are and where they lie beside DICOM `objects`."""
    beside = _Beside.of(objects)
    return [one for one in strangers if one.found and beside.may_have(one)]


def may_be_dicom(file: File) -> bool:
    """Whether a file is a DICOM object, packed or not, or says by its name that it was one."""
    stranger = stranger_of(file)
    return stranger is None or (bool(stranger.found) and _was_dicom(stranger))


def is_dicom_file(file: File) -> bool:
    """Whether a file is a DICOM object, packed or not."""
    stranger = stranger_of(file)
    return stranger is None or stranger.marked


@dataclass(frozen=True)
class _Beside:
    """What the DICOM objects are called beside which a file lies.

    Attributes:
        shapes: their names, with all numbers alike, with and without DICOM's ending.
        folders: where they lie.
        endings: how their names end.
    """

    shapes: frozenset[str]
    folders: frozenset[str]
    endings: frozenset[str]

    @staticmethod
    def of(objects: Iterable[str]) -> _Beside:
        names = list(objects)
        shapes = {_shape(one) for name in names for one in (name, DICOM_ENDING.sub("", name))}
        folders = {name.rpartition("/")[0] for name in names}
        return _Beside(frozenset(shapes), frozenset(folders), frozenset(map(_ending, names)) - {""})

    def may_have(self, stranger: Stranger) -> bool:
        """Whether a file may be a slice of theirs. Among them, only what is surely of another kind is none."""
        name = stranger.name
        folder, _, last = name.rpartition("/")
        if stranger.closed or _was_dicom(stranger) or _shape(name) in self.shapes:
            return True
        if stranger.known:
            return _stem(name) != name and _shape(_stem(name)) in self.shapes
        if _ending(name) in self.endings:
            return True
        if named_other(last, stranger.silent):
            return False
        return folder in self.folders or not ANY_ENDING.search(last) or _stem(name) != name


def _was_dicom(stranger: Stranger) -> bool:
    return stranger.marked or DICOM_ENDING.search(_stem(stranger.name)) is not None
