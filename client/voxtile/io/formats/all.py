"""Lists the file formats of scans and masks, and chooses among them: by content first, by a name's ending second.

A new format is a module of this package and its line here. Knows nothing of how a format is read or written.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from voxtile.errors import InputError, OutputError
from voxtile.io.formats.base import Content, FileFormat, Pieces, ends_in, without_ending
from voxtile.io.formats.metaimage import METAIMAGE
from voxtile.io.formats.mgh import MGH
from voxtile.io.formats.nifti import NIFTI
from voxtile.io.formats.not_scans import FILES_LOOKED_AT, what_folder_it_is, what_it_is
from voxtile.io.formats.nrrd import NRRD
from voxtile.io.formats.pair import PAIR, header_beside
from voxtile.io.formats.tiff import TIFF
from voxtile.io.stored import Admit, Stored
from voxtile.io.volume import Volume

FORMATS: tuple[FileFormat, ...] = (NIFTI, PAIR, MGH, NRRD, METAIMAGE, TIFF)

SUFFIXES: tuple[str, ...] = tuple(suffix for one in FORMATS for suffix in one.suffixes)
"""The endings of all files that a scan can be read from."""

PART_SUFFIXES: tuple[str, ...] = tuple(suffix for one in FORMATS for suffix in one.part_suffixes)
"""The endings of files that hold the voxels of a scan whose header is another file."""

MASK_SUFFIXES: tuple[str, ...] = tuple(suffix for one in FORMATS for suffix in one.written)
"""The endings of all files that a mask can be written to."""

MUCH_ALIKE = 0.8
"""From this likeness on, the name of another file is taken for the one that was meant."""


# Reading -------------------------------------------------------------------------------------------------------


def read_file(path: Path, admit: Admit) -> Stored:
    """Reads a scan's file, whatever it is called; of a header and a file of voxels, either may be named.

    Raises:
        InputError: it is no scan; the message says what it is.
        MissingExtraError: its format needs a package that is not installed.
    """
    content = Content.of_file(_checked(path))
    found = _format_of(content)
    if found is None and ends_in(path.name, PART_SUFFIXES) and (header := header_beside(path)) is not None:
        return read_file(header, admit)
    return _read(content, found, admit)


def read_bytes(data: bytes, name: str, admit: Admit) -> Stored:
    """Reads the content of a scan's file as `read_file` does; `name` is what messages call it."""
    content = Content.of_bytes(data, name)
    return _read(content, _format_of(content), admit)


def _read(content: Content, found: FileFormat | None, admit: Admit) -> Stored:
    if found is None:
        wanted = _named(content) or NIFTI
        expected = f"expected a {wanted.name} file ({', '.join(wanted.suffixes[:2])})"
        raise InputError(f"{content.name}: {expected}, found {what_it_is(content.first, content.name)}")
    stored = found.read(content, admit)
    by_name = _named(content)
    if by_name is None or by_name is found:
        return stored
    odd = f"the file's name ends as {by_name.name}, and it is {found.name}"
    return replace(stored, warnings=(*stored.warnings, odd))


def _format_of(content: Content) -> FileFormat | None:
    """The format of content by its first bytes; None where they are of none."""
    return next((one for one in FORMATS if one.is_it(content)), None)


def _named(content: Content) -> FileFormat | None:
    """The format that the ending of a file's name stands for."""
    name = "" if content.path is None else content.path.name
    return next((one for one in FORMATS if ends_in(name, one.suffixes)), None)


def _checked(path: Path) -> Path:
    """Checks that a path is a regular file. Raises InputError."""
    if path.is_file():
        return path
    wanted = f"{path}: expected the file of a scan, found"
    if path.is_dir():
        raise InputError(f"{wanted} {what_folder_it_is(path, SUFFIXES)}")
    if path.exists():
        raise InputError(f"{wanted} no plain file")
    if path.is_symlink():
        raise InputError(f"{wanted} a link that leads nowhere; fetch what it leads to, such as with git annex get")
    raise InputError(f"{wanted} nothing of that name{_nearest(path)}; check the path")


def _nearest(path: Path) -> str:
    """The file beside a path with the most similar name, in words; nothing where there is none."""
    try:
        names = list(islice((one.name for one in path.parent.iterdir()), FILES_LOOKED_AT))
    except OSError:
        return f" and no folder {path.parent}"
    near = difflib.get_close_matches(path.name, names, 1, MUCH_ALIKE)
    return f" (did you mean {near[0]}?)" if near else ""


def is_scan(path: Path) -> bool:
    """Whether the name of a file ends as a scan's does, in capitals or not."""
    return bool(ends_in(path.name, SUFFIXES))


def stem_of(path: Path) -> str:
    """The name of a scan's file without its ending."""
    return without_ending(path.name, (*SUFFIXES, *PART_SUFFIXES))


def all_files(path: Path) -> list[Path]:
    """All files that hold the scan of a file, the given one first."""
    if ends_in(path.name, PART_SUFFIXES):
        header = header_beside(path)
        return [path] if header is None else [path, header]
    return [path, *(part for one in FORMATS if ends_in(path.name, one.suffixes) for part in one.parts(path))]


# Writing -------------------------------------------------------------------------------------------------------


def format_to_write(path: Path) -> FileFormat:
    """The format that the ending of a mask's name asks for.

    Raises:
        OutputError: it asks for none.
        MissingExtraError: the format needs a package that is not installed.
    """
    found = next((one for one in FORMATS if ends_in(path.name, one.written)), None)
    if found is None or without_ending(path.name, found.written) == "":
        raise OutputError(f"{path}: expected a name that ends in one of {', '.join(MASK_SUFFIXES)}")
    found.check_installed(path)
    return found


def files_to_write(path: Path) -> list[Path]:
    """All files that are written for a mask of a name; raises as `format_to_write` does."""
    return [path, *format_to_write(path).written_parts(path)]


def pieces_to_write(image: Any, volume: Volume | None, path: Path) -> Iterable[tuple[Path, Pieces]]:
    """Each file of a mask with its bytes; see `voxtile.io.formats.base.Write`."""
    write = format_to_write(path).write
    assert write is not None, "a format that is written has an ending for it"
    return write(image, volume, path)
