"""Reads nnU-Net's channel numbers in the names of files, and compares them with the channels of a model.

CASE_0000.nii.gz is the first channel of CASE. A name may also end in four digits that are no channel number, such as a
patient's. Knows nothing of what is in a file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from voxtile.errors import InputError
from voxtile.io.formats.all import is_scan, stem_of

NUMBERED = re.compile(r"(.+)_(\d{4})", re.ASCII | re.DOTALL)

MISNAMED = (
    "add what is missing, and move or rename what is no channel: a name that ends in _ and four digits is read as "
    "nnU-Net's number of a channel"
)


def split_number(file: Path) -> tuple[str, int | None]:
    """Returns the name of a scan's file without its ending and its number, and the number, if it has one."""
    stem = stem_of(file)
    found = NUMBERED.fullmatch(stem)
    return (found[1], int(found[2])) if found else (stem, None)


def check_numbers_of_case(files: Sequence[Path], channels: Sequence[str]) -> None:
    """Checks the files of one case, which have one name and a number each: one for each channel, in order.

    A single file with the number of the first channel may hold all channels, which its reader knows.

    Args:
        files: the files.
        channels: the model's channels, by name.

    Raises:
        InputError: a channel is missing, is there twice or is none of the model's, or the order is another.
    """
    numbers = [number for _, number in map(split_number, files) if number is not None]
    if numbers in ([0], [*range(len(channels))]):
        return
    advice = MISNAMED if sorted(numbers) != [*range(len(channels))] else "give them in this order"
    raise InputError(f"expected {_wanted(channels)}, found {', '.join(file.name for file in files)}; {advice}")


def check_numbers_as_given(files: Sequence[Path], channels: Sequence[str]) -> None:
    """Checks the files of one scan in the order in which they are given; names without numbers may be anything.

    Args:
        files: the files.
        channels: the model's channels, by name.

    Raises:
        InputError: the numbers in the names say another order, or other channels than the model's.
    """
    split = [split_number(file) for file in files]
    numbers = [number for _, number in split if number is not None]
    if len(numbers) < len(files) or not files:
        return
    if len(files) == 1:
        _check_alone(files[0], numbers[0], channels)
    elif len({name for name, _ in split}) == 1 or sorted(numbers) == [*range(len(channels))]:
        check_numbers_of_case(files, channels)


def _check_alone(file: Path, number: int, channels: Sequence[str]) -> None:
    """One file is no channel of its own if its number is another channel's, or if the first channel lies beside it."""
    if number == 0 or (number >= len(channels) and not _first_channel_beside(file)):
        return
    check_numbers_of_case([file], channels)


def _first_channel_beside(file: Path) -> bool:
    name, _ = split_number(file)
    try:
        return any(is_scan(other) and split_number(other) == (name, 0) for other in file.parent.glob("*_0000.*"))
    except OSError:
        return False


def _wanted(channels: Sequence[str]) -> str:
    listed = ", ".join(f"_{number:04d} {name}" for number, name in enumerate(channels))
    return f"one file for each channel ({listed})"
