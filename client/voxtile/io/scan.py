"""Opens a scan, in whatever form it is given, as a Volume. This is the one place where forms are told apart.

Knows nothing of models beyond the names of their channels and of their reader.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from voxtile.errors import InputError
from voxtile.io import in_memory
from voxtile.io.assemble import assemble, wanted
from voxtile.io.dicom.choice import ANY_SERIES, SeriesChoice
from voxtile.io.dicom.read import bytes_hold_dicom, holds_dicom, read_dicom
from voxtile.io.formats import all as formats
from voxtile.io.geometry import MONAI
from voxtile.io.given import NOTHING_GIVEN, Given
from voxtile.io.in_memory import AffineImage, SimpleItkImage
from voxtile.io.stored import Admit, Stored
from voxtile.io.volume import Volume

ScanItem = str | os.PathLike[str] | bytes | AffineImage | SimpleItkImage | tuple[NDArray[Any], ArrayLike]
"""One source of a scan:

- a path of a file of any format in `voxtile.io.formats`, or the bytes of one;
- a folder or a zip archive of DICOM objects, the path of one object, or the bytes of an archive or an object;
- a nibabel image or a SimpleITK image;
- MONAI's MetaTensor [channel, i, j, k], or [i, j, k];
- an array [i, j, k], or [i, j, k, channel], with its affine [4, 4] from voxel to RAS millimetres.
"""

ScanInput = ScanItem | Sequence[ScanItem] | Volume
"""A scan: one source that holds all channels, a list of sources with one for each channel, or a Volume."""


def open_scan(
    image: ScanInput,
    channel_names: Sequence[str],
    reader: str = MONAI,
    max_bytes: int | None = None,
    given: Given = NOTHING_GIVEN,
) -> Volume:
    """Opens a scan as a Volume.

    Args:
        image: the scan. Several sources come in the order of `channel_names`; each is read before the next is touched.
        channel_names: the model's channels, by name.
        reader: the model's own reader of files, whose rule says which header fields count; see `voxtile.io.geometry`.
        max_bytes: limit for what reading takes; None for the machine's own memory.
        given: what is said of the scan beside what its files say.

    Raises:
        InputError: in one line, for whatever is not a scan of so many channels on one grid.
        MemoryLimitError: reading would take more than `max_bytes`, or more than the machine has.
    """
    if isinstance(image, Volume):
        return _checked(image, channel_names)
    items = sources_of(image)
    choices = choices_of(items, given.dicom)
    items = items * len(choices) if len(items) == 1 else items
    names = [_name_of(item, number) for number, item in enumerate(items)]
    if not items:
        raise InputError(f"expected {wanted(channel_names)}, found no file")
    if len(names) not in (1, len(channel_names)):
        raise InputError(f"expected {wanted(channel_names)}, found {len(names)}: {', '.join(names)}")
    sources = [
        (name, partial(_read, item, name, choice)) for name, item, choice in zip(names, items, choices, strict=True)
    ]
    return assemble(sources, channel_names, reader, max_bytes, given)


def files_of(image: ScanInput) -> list[Path]:
    """Returns the files of a scan in the order given; none where a source is something else than a file."""
    items = [] if isinstance(image, Volume) else sources_of(image)
    paths = [Path(item) for item in items if isinstance(item, (str, os.PathLike))]
    return paths if len(paths) == len(items) else []


def choices_of(items: Sequence[Any], choice: SeriesChoice) -> list[SeriesChoice]:
    """Which DICOM series each source is; of one source and several series, it is each of these in turn.

    Raises:
        InputError: there are neither one nor as many series as sources.
    """
    series = choice.series
    if len(series) <= 1:
        return [choice] * max(len(items), 1)
    if len(items) not in (1, len(series)):
        raise InputError(f"expected one --series a source, found {len(series)} for {len(items)} sources")
    return [replace(choice, series=(one,)) for one in series]


def _checked(volume: Volume, channel_names: Sequence[str]) -> Volume:
    if volume.channels != len(channel_names):
        raise InputError(f"{volume.names[0]}: expected {wanted(channel_names)}, found {volume.channels}")
    return volume


def sources_of(image: Any) -> list[Any]:
    several = isinstance(image, (list, tuple)) and not _is_array_with_affine(image)
    return list(image) if several else [image]


def _is_array_with_affine(item: Any) -> bool:
    return isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], np.ndarray)


def _name_of(item: Any, number: int) -> str:
    """What messages call a source: its file's name where it has one."""
    if isinstance(item, (str, os.PathLike)):
        return str(os.fspath(item))
    get_filename = getattr(item, "get_filename", None)
    return str((get_filename and get_filename()) or f"image {number + 1}")


def _read(item: Any, name: str, choice: SeriesChoice, admit: Admit) -> Stored:
    if isinstance(item, (str, os.PathLike)):
        path = Path(item)
        dicom = holds_dicom(path)
        _check_is_series(dicom, choice, name)
        return read_dicom(path, name, choice, admit) if dicom else formats.read_file(path, admit)
    if isinstance(item, (bytes, bytearray, memoryview)):
        data = bytes(item)
        dicom = bytes_hold_dicom(data)
        _check_is_series(dicom, choice, name)
        return read_dicom(data, name, choice, admit) if dicom else formats.read_bytes(data, name, admit)
    _check_is_series(False, choice, name)
    if _is_array_with_affine(item):
        array, affine = item
        return in_memory.read_array(array, affine, name)
    if isinstance(item, np.ndarray):
        raise InputError(f"{name}: expected an array with its affine, (array, affine), found an array alone")
    if in_memory.is_simpleitk(item):
        return in_memory.read_simpleitk(item, name)
    if in_memory.is_meta_tensor(item):
        return in_memory.read_meta_tensor(item, name)
    return in_memory.read_nibabel(item, name, admit)


def _check_is_series(dicom: bool, choice: SeriesChoice, name: str) -> None:
    """Refuses a choice among DICOM series for a source that is none. Raises InputError."""
    if choice != ANY_SERIES and not dicom:
        raise InputError(f"{name}: {', '.join(choice.in_words)}: is for DICOM, and this is none; leave it out")
