"""Looks a zip over before anything in it is used: how much it holds, and whether all of it can be read.

A file that cannot be unpacked could not be told from one that is no DICOM, and a slice would be missed in silence.
"""

from __future__ import annotations

import contextlib
import io
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from voxtile.io.dicom.files import ARCHIVE_ERRORS, ENCRYPTED, is_dicom
from voxtile_server.gateway.failures import HttpFailure

MOST_OBJECTS = 20_000
"""Files of one request; a study of perfusion has ten thousand."""

MOST_DIRECTORY = 8 << 20
"""Bytes of a zip's list of files, which is read into memory as a whole."""

UNPACKED = 4
"""A zip may hold so many times the bytes that a body may have: pixels seldom become smaller than a quarter."""

METHODS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})

PIECE = 1 << 20

LOOKED_AT = 264
"""Bytes by which DICOM is told."""


class _Bounded(io.FileIO):
    """A file of which no more is read at once than a list of files may have."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Implements `io.FileIO.read`. Raises HttpFailure."""
        if size is not None and size > MOST_DIRECTORY:
            raise _too_many()
        return super().read(-1 if size is None else size) or b""


def check_archive(file: Path, name: str, most_sent: int, most_member: int) -> None:
    """Checks what a zip says of its files; nothing is unpacked.

    Args:
        file: the zip.
        name: what messages call it.
        most_sent: bytes that a body may have.
        most_member: bytes that one file may have unpacked.

    Raises:
        HttpFailure: 413, there is too much in it; 422, it is damaged, empty, encrypted, or packed by another method.
    """
    with _opened(file, name) as archive:
        members = [one for one in archive.infolist() if not one.is_dir()]
    if not members:
        raise HttpFailure(422, f"{name}: expected a zip of a DICOM series, found one without files")
    if len(members) > MOST_OBJECTS:
        raise _too_many()
    for one in members:
        if one.flag_bits & ENCRYPTED:
            raise HttpFailure(422, f"{name}: expected a zip that is not encrypted, found one that is; pack it again")
        if one.compress_type not in METHODS:
            text = f"expected a zip that is packed by Deflate or stored, found method {one.compress_type}"
            raise HttpFailure(422, f"{name}: {text}; pack it again")
    largest, total = max(one.file_size for one in members), sum(one.file_size for one in members)
    if largest > most_member:
        raise _too_large(name, "in a file of a zip", most_member, largest)
    if total > UNPACKED * most_sent:
        raise _too_large(name, "in a zip, unpacked", UNPACKED * most_sent, total)


def check_content(file: Path, name: str, between: Callable[[], None]) -> None:
    """Unpacks all that a zip holds, to nowhere, and compares the checksums; looks whether any of it is DICOM.

    Args:
        file: the zip.
        name: what messages call it.
        between: called before each file; may raise.

    Raises:
        HttpFailure: 422, a file in it is damaged, or none is DICOM.
    """
    found = False
    with _opened(file, name) as archive:
        for one in archive.infolist():
            between()
            try:
                with archive.open(one) as stream:
                    found |= is_dicom(stream.read(LOOKED_AT))
                    while stream.read(PIECE):
                        pass
            except ARCHIVE_ERRORS:
                text = "cannot be unpacked, it is damaged; pack or fetch it again"
                raise HttpFailure(422, f"{name}/{one.filename}: {text}") from None
    if not found:
        text = "expected the objects of a DICOM series, found none; a zip in a zip is not looked into"
        raise HttpFailure(422, f"{name}: {text}")


@contextlib.contextmanager
def _opened(file: Path, name: str) -> Iterator[zipfile.ZipFile]:
    with _Bounded(file, "rb") as stream:
        try:
            archive = zipfile.ZipFile(stream)
        except ARCHIVE_ERRORS:
            text = "expected a zip, found a damaged one, or one that is cut off; pack or send it again"
            raise HttpFailure(422, f"{name}: {text}") from None
        with archive:
            yield archive


def _too_many() -> HttpFailure:
    return HttpFailure(413, f"expected at most {MOST_OBJECTS:,} files, found more; send one series alone")


def _too_large(name: str, where: str, most: int, found: int) -> HttpFailure:
    text = f"expected at most {most:,} bytes {where}, found {found:,}"
    return HttpFailure(413, f"{name}: {text}; the operator allows more with --max-upload and --max-ram")
