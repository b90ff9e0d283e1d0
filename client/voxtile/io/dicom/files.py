"""Finds the files that DICOM objects may lie in: those of a folder and of the folders in it, of an archive, or one.

Knows nothing of what is in them.
"""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from voxtile.errors import InputError

MARK = slice(128, 132)
"""Where a DICOM file says DICM."""

MOST_FILES = 1_000_000
"""Files looked at; a study has some thousands."""

LARGEST_MEMBER = 1 << 34
"""Bytes that one file of an archive may have unpacked; an object's own limit is 2^32 pixels."""

ENCRYPTED = 1
"""The flag of an archive's member that is encrypted."""

ARCHIVE_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OSError, ValueError)
"""What zipfile raises for archives that are damaged, encrypted, or packed in a way that it does not know."""


@dataclass(frozen=True, eq=False)
class File:
    """One file, on disk or in an archive.

    Attributes:
        name: what messages call it.
        path: where it lies; None in an archive.
        archive: the archive; None for a file on disk.
        member: its place in the archive.
        data: its bytes, where it is neither.
    """

    name: str
    path: Path | None = None
    archive: zipfile.ZipFile | None = None
    member: Any = None
    data: bytes | None = None

    def open(self) -> IO[bytes]:
        """Opens it; what is packed in an archive is unpacked into memory.

        Raises:
            InputError: it cannot be read.
        """
        try:
            if self.path is not None:
                return self.path.open("rb")
            if self.archive is None:
                return io.BytesIO(self.data or b"")
            if self.member.flag_bits & ENCRYPTED:
                raise InputError(f"{self.name}: is encrypted; unpack the archive with its password first")
            if self.member.file_size > LARGEST_MEMBER:
                raise InputError(f"{self.name}: claims {self.member.file_size:,} bytes, more than an object can have")
            return io.BytesIO(self.archive.read(self.member))
        except ARCHIVE_ERRORS as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
            raise InputError(f"{self.name}: cannot be read ({reason})") from None

    def first(self, count: int) -> bytes:
        """Its first `count` bytes, or all; empty where it cannot be read."""
        try:
            if self.archive is not None:
                with self.archive.open(self.member) as stream:
                    return stream.read(count)
            with self.open() as stream:
                return stream.read(count)
        except (InputError, *ARCHIVE_ERRORS):
            return b""


def is_dicom(first: bytes) -> bool:
    """Whether a file that begins with these bytes says, or looks as if, it is DICOM."""
    return first[MARK] == b"DICM" or _is_bare(first)


def _is_bare(first: bytes) -> bool:
    """Whether bytes begin with DICOM's first groups, as files without a preamble do, with types or without."""
    if first[:2] not in (b"\x02\0", b"\x08\0") or first[3:4] != b"\0":
        return False
    typed = first[4:6].isalpha() and first[4:6].isupper()
    untyped = first[:2] == b"\x08\0" and len(first) >= 8 and int.from_bytes(first[4:8], "little") <= 64
    return typed or untyped


def files_of_folder(folder: Path) -> Iterator[File]:
    """Yields the plain files of a folder and of all in it, in the order of their names; hidden ones are left out.

    Raises:
        InputError: the folder cannot be read, or holds more files than a study has.
    """
    count = 0

    def failed(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror or error})")

    for place, folders, names in os.walk(folder, onerror=failed):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(place) / name
            if name.startswith(".") or not path.is_file():
                continue
            count += 1
            if count > MOST_FILES:
                raise InputError(f"{folder}: expected the folder of a study, found more than {MOST_FILES:,} files")
            yield File(str(path), path=path)


def files_of_archive(file: Path | bytes, name: str) -> Iterator[File]:
    """Yields the files of a zip archive.

    Raises:
        InputError: it is damaged.
    """
    try:
        archive = zipfile.ZipFile(io.BytesIO(file) if isinstance(file, bytes) else file)
    except ARCHIVE_ERRORS:
        raise InputError(f"{name}: expected a zip archive, found a damaged one; pack or fetch it again") from None
    for member in archive.infolist()[:MOST_FILES]:
        if not member.is_dir():
            yield File(f"{name}/{member.filename}", archive=archive, member=member)
