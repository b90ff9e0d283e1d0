"""Reads PyTorch's zip archives with Python's own reader and packs what was checked again. Knows no kind of network.

PyTorch has a reader of its own, which may find other content in a crafted file: two members of one name, two lists of
members. What is given to PyTorch is therefore a new archive of exactly the bytes that were looked at.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from voxtile_build.errors import NetworkError

COMPRESSED_BYTES = 256 << 20
"""Most bytes that compressed members may unpack to: PyTorch compresses code alone, which is far smaller."""


def read_archive(path: Path, content: bytes, what: str) -> dict[str, bytes]:
    """The members of an archive by their names below its only folder.

    Args:
        path: names the file in errors.
        content: its bytes.
        what: the file should be, for errors.

    Raises:
        NetworkError: the file is damaged, unpacks to more than it could hold, or has two members of one name.
    """
    if not zipfile.is_zipfile(io.BytesIO(content)):
        raise NetworkError(f"{path}: expected {what}, found a truncated file or one of another kind")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            parts = archive.infolist()
            if min((part.header_offset for part in parts), default=0) > 0:
                # The file is truncated, and what was found is the end of an archive inside it.
                raise zipfile.BadZipFile("it is truncated")
            if sum(part.file_size for part in parts) > len(content) + COMPRESSED_BYTES:
                raise zipfile.BadZipFile("its members unpack to more than a network's could")
            members = [(part.filename, archive.read(part)) for part in parts]
    except Exception as error:  # damaged archives raise many kinds of errors
        raise NetworkError(f"{path}: expected {what}, found a damaged one: {error}") from None
    found = {name.partition("/")[2]: data for name, data in members}
    if len(found) < len(members) or len({name.partition("/")[0] for name, _ in members}) != 1:
        raise unsafe(path, "two members of one name, or several folders")
    return found


def refuse_others(path: Path, members: Iterable[str], allowed: Sequence[str]) -> None:
    """Refuse members whose names match no pattern.

    Raises:
        NetworkError: names the first.
    """
    for name in members:
        if not any(re.fullmatch(pattern, name) for pattern in allowed):
            raise unsafe(path, f"{name!r}, which is not part of an exported network")


def pack(members: Mapping[str, bytes]) -> bytes:
    """An archive that PyTorch reads, of these members."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(f"network/{name}", data)
    return stream.getvalue()


def unsafe(path: Path, what: str) -> NetworkError:
    """The error for a file that holds more than a network."""
    return NetworkError(
        f"{path}: expected tensors and operators only, found {what}; it could run code and is not opened"
    )
