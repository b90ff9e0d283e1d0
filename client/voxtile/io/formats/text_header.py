"""Reads headers of text, in which each line names a field: those of NRRD and MetaImage. Knows no field by name.

Such a header may name another file, which holds the voxels. It must lie beside the header: a header from elsewhere
shall not make a program read a file of its choice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import IO

from voxtile.errors import InputError
from voxtile.io.formats.base import Content

LONGEST = 1 << 20
"""Bytes of a header; those of programs that keep their history in it have a few thousand."""


def lines_of(stream: IO[bytes], name: str) -> Iterator[str]:
    """Yields the lines of a stream's header without their ends; the stream then stands behind the last one.

    Raises:
        InputError: there are more than LONGEST bytes.
    """
    left = LONGEST
    while line := stream.readline(left):
        left -= len(line)
        if left <= 0:
            raise InputError(f"{name}: expected a header of less than {LONGEST:,} bytes, found no end of it")
        yield line.decode("utf-8", "surrogateescape").rstrip("\r\n")


def numbers(text: str, count: int, field: str, name: str) -> list[float]:
    """The finite numbers in a field. Raises InputError where these are not `count` numbers."""
    try:
        found = [float(word) for word in text.split()]
    except ValueError:
        found = []
    if len(found) != count or not all(map(math.isfinite, found)):
        raise InputError(f"{name}: expected {count} numbers for {field!r} in its header, found {text.strip()[:80]!r}")
    return found


def counts(text: str, count: int, field: str, name: str) -> tuple[int, ...]:
    """The whole numbers of at least 1 in a field, such as sizes. Raises InputError where these are not `count`."""
    found = numbers(text, count, field, name)
    if any(value != int(value) or value < 1 for value in found):
        raise InputError(f"{name}: expected whole numbers of at least 1 for {field!r}, found {text.strip()[:80]!r}")
    return tuple(int(value) for value in found)


def one_of(text: str, known: Sequence[str], field: str, name: str) -> str:
    """A field's value in small letters with single spaces. Raises InputError where it is none of `known`."""
    found = " ".join(text.lower().split())
    if found not in known:
        raise InputError(f"{name}: expected for {field!r} one of {', '.join(known)}, found {text.strip()[:80]!r}")
    return found


def file_beside(content: Content, name: str) -> Content:
    """The file of voxels that a header names.

    Raises:
        InputError: it is not a plain name of a file in the header's folder, or there is none.
    """
    if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise InputError(
            f"{content.name}: expected the name of a file beside it for its voxels, found {name[:80]!r}; move the file "
            "beside its header and name it there"
        )
    return content.beside(name)
