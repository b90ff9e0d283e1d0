"""Looks a zip over before anything in it is read: how much it holds. Knows nothing of what that is."""

from __future__ import annotations

import contextlib
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

from voxtile.io.dicom.objects.files import ARCHIVE_ERRORS
from voxtile_server.gateway.failures import HttpFailure

MOST_OBJECTS = 20_000
"""Files of one request; a study of perfusion has ten thousand."""

MOST_DIRECTORY = 8 << 20
"""Bytes of a zip's list of files, which is read into memory as a whole."""

UNPACKED = 4
"""A zip may hold so many times the bytes that a body may have: pixels seldom become smaller than a quarter."""


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
        most_member: bytes that one file may have, unpacked.

    Raises:
        HttpFailure: 413, there is too much in it; 422, it is damaged or empty.
    """
    with _opened(file, name) as archive:
        members = [one for one in archive.infolist() if not one.is_dir()]
    if not members:
        raise HttpFailure(422, f"{name}: expected a zip of a DICOM series, found one without files")
    if len(members) > MOST_OBJECTS:
        raise _too_many()
    largest, total = max(one.file_size for one in members), sum(one.file_size for one in members)
    if largest > most_member:
        raise _too_large(name, "in a file of a zip", most_member, largest)
    if total > UNPACKED * most_sent:
        raise _too_large(name, "in a zip, unpacked", UNPACKED * most_sent, total)


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
