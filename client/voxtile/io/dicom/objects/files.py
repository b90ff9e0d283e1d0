"""Finds the files that DICOM objects may lie in: those of a folder and of the folders in it, of an archive, or one.

Knows nothing of what is in them.
"""

from __future__ import annotations

import io
import os
import stat
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

from voxtile.errors import InputError

MARK = slice(128, 132)
"""Where a DICOM file says DICM."""

MOST_FILES = 1_000_000
"""Files looked at; a study has some thousands."""

ENCRYPTED = 1
"""The flag of an archive's member that is encrypted."""

READ_BYTES = 1 << 16
"""Bytes of an archive's member that are unpacked at a time; steps back within them cost nothing."""

EMPTY_PACKED = 12
"""Bytes that nothing becomes when it is packed and encrypted."""

KEPT_BY_MACHINES = frozenset({".git", ".svn", ".hg", ".datalad", ".snapshot", ".snapshots", ".zfs", ".Trashes"})
"""Hidden folders in which programs keep older states of the files beside them."""

TRASH = ".Trash"
"""How folders begin that hold what was thrown away."""

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
    data: bytes | None = field(default=None, repr=False)

    @property
    def size(self) -> int:
        """Its bytes; those that it claims to become, where it is packed in an archive."""
        if self.archive is not None:
            return int(self.member.file_size)
        return self._opened(lambda: os.stat(self.path).st_size) if self.path is not None else len(self.data or b"")

    @property
    def is_special(self) -> bool:
        """Whether it is a pipe, a socket or a device, at which reading would wait."""
        try:
            return self.path is not None and not stat.S_ISREG(os.stat(self.path).st_mode)
        except OSError:  # a link that leads nowhere: its reading says so
            return False

    def open(self) -> IO[bytes]:
        """Opens it; what is packed in an archive is unpacked as it is read.

        Raises:
            InputError: it cannot be read.
        """
        return cast("IO[bytes]", self._opened(self._stream))

    def content(self) -> bytes:
        """Returns all of it, unpacked.

        Raises:
            InputError: it cannot be read.
        """
        with self.open() as stream:
            return cast("bytes", self._opened(stream.read))

    def first(self, count: int) -> bytes:
        """Its first `count` bytes, or all.

        Raises:
            InputError: it cannot be read.
        """
        with self.open() as stream:
            return cast("bytes", self._opened(lambda: stream.read(count)))

    def _stream(self) -> Any:
        if self.path is not None:
            if self.is_special:
                raise InputError(f"{self.name}: cannot be read (no plain file)")
            return self.path.open("rb")
        if self.archive is None:
            return io.BytesIO(self.data or b"")
        if self.member.flag_bits & ENCRYPTED:
            raise InputError(f"{self.name}: is encrypted; unpack the archive with its password first")
        packed: Any = self.archive.open(self.member)
        return io.BufferedReader(packed, READ_BYTES)

    def _opened(self, action: Any) -> Any:
        """What `action` returns; what goes wrong with files and archives is one error."""
        try:
            return action()
        except NotImplementedError:  # of zipfile, for a way of packing that it does not know
            raise InputError(
                f"{self.name}: is packed in a way that Python cannot unpack; pack the archive again, with deflate"
            ) from None
        except ARCHIVE_ERRORS as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
            raise InputError(f"{self.name}: cannot be read ({reason})") from None


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
    """Yields the files of a folder and of all in it, in the order of their names, hidden ones too.

    Links are followed, and each folder is entered once. Folders of older states (`.git`, `.snapshot`) and of what was
    thrown away are left out.

    Raises:
        InputError: a folder cannot be read, or holds more files than a study has.
    """
    count = 0
    entered = {_identity(folder)}

    def failed(error: OSError) -> None:
        raise InputError(f"{_shown(str(error.filename))}: cannot be read ({error.strerror or error})")

    for place, folders, names in os.walk(folder, onerror=failed, followlinks=True):
        folders[:] = [name for name in sorted(folders) if _is_entered(Path(place) / name, entered)]
        for name in sorted(names):
            count += 1
            _check_count(count, str(folder))
            path = Path(place) / name
            yield File(_shown(str(path)), path=path)


def _is_entered(folder: Path, entered: set[tuple[int, int]]) -> bool:
    """Whether a folder is to be looked into; it then counts as entered."""
    if folder.name in KEPT_BY_MACHINES or folder.name.startswith(TRASH):
        return False
    identity = _identity(folder)
    known = identity in entered
    entered.add(identity)
    return not known


def _identity(folder: Path) -> tuple[int, int]:
    """Equal for the same folder, whatever link leads to it."""
    try:
        found = os.stat(folder)
    except OSError as error:
        raise InputError(f"{_shown(str(folder))}: cannot be read ({error.strerror or error})") from None
    return found.st_dev, found.st_ino


def files_of_archive(file: Path | bytes, name: str) -> Iterator[File]:
    """Yields the files of a zip archive.

    Raises:
        InputError: it is damaged, or holds more files than a study has.
    """
    try:
        archive = zipfile.ZipFile(io.BytesIO(file) if isinstance(file, bytes) else file)
    except ARCHIVE_ERRORS:
        raise InputError(f"{name}: expected a zip archive, found a damaged one; pack or fetch it again") from None
    for count, member in enumerate(archive.infolist(), 1):
        _check_count(count, name)
        if is_false_folder(member):
            raise InputError(
                f"{_shown(f'{name}/{member.filename}')}: expected a file, found data under the name of a folder; "
                "pack the files again"
            )
        if not member.is_dir():
            yield File(_shown(f"{name}/{member.filename}"), archive=archive, member=member)


def is_false_folder(member: zipfile.ZipInfo) -> bool:
    """Whether a member is named as folders are, and holds data, which nobody would read."""
    return member.is_dir() and (member.file_size > 0 or member.compress_size > EMPTY_PACKED)


def _check_count(count: int, name: str) -> None:
    if count > MOST_FILES:
        raise InputError(f"{name}: expected the files of a study, found more than {MOST_FILES:,}")


def _shown(name: str) -> str:
    """A name for messages: line breaks and other signs that a terminal obeys are replaced."""
    return "".join(sign if sign.isprintable() else "?" for sign in name)
