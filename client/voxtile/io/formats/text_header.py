"""Reads headers of text, in which each line names a field: those of NRRD and MetaImage. Knows no field by name.

Such a header may name another file, which holds the voxels. It must lie beside the header: a header from elsewhere
shall not make a program read a file of its choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from voxtile.errors import InputError
from voxtile.io.formats.base import Content, ends_in

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


def detached_part(path: Path, ending: str, other: Callable[[IO[bytes], Content], Content]) -> list[Path]:
    """The file of voxels that a detached header names; none where it cannot be read, which its reader says.

    Args:
        path: the file of a scan.
        ending: how the name of a detached header ends, in small letters.
        other: finds the file of voxels by a stream at the header's beginning.
    """
    if not path.name.lower().endswith(ending):
        return []
    try:
        content = Content.of_file(path)
        with content.stream() as stream:
            found = other(stream, content).path
    except (InputError, KeyError):
        return []
    return [] if found is None else [found]


def part_beside(path: Path, ending: str, suffixes: Sequence[str], part: str) -> list[Path]:
    """The file of voxels that is written with a detached header of a name: it ends in `part` in place of `ending`."""
    found = ends_in(path.name, suffixes)
    return [path.with_name(path.name[: -len(found)] + part)] if found == ending else []
