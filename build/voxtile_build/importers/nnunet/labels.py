"""Reads channels and labels from nnU-Net's dataset.json, by the rules of its LabelManager (nnunetv2 2.8.1)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from voxtile_build.errors import SourceError
from voxtile_build.importers.nnunet.shapes import Dataset, check_kinds

IGNORE = "ignore"
UINT8, UINT16 = 255, 65535
"""The largest values of the types in which nnU-Net writes masks; from 255 foreground labels on it is uint16."""


@dataclass(frozen=True)
class Labels:
    """The labels of a model.

    Attributes:
        names: of the network's outputs, in order.
        values: the voxel value of each output in the mask.
        foreground: every label value except background, ascending; they become channels of a cascade's second stage.
        regions: whether outputs are regions, which overlap.
    """

    names: tuple[str, ...]
    values: tuple[int, ...]
    foreground: tuple[int, ...]
    regions: bool

    @property
    def count(self) -> int:
        """The number of labels with background; it decides the data type of the mask."""
        return len(self.foreground) + 1


def channels_of(dataset: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Names of the images of one scan, in the order of their files (_0000, _0001, …).

    Keys that are numbers are those of the files. nnU-Net itself only counts the names, so that other keys are taken in
    their own order.
    """
    named = dataset.get("modality", dataset.get("channel_names"))
    if not isinstance(named, Mapping) or not named:
        raise SourceError(f"{where}: channel_names: expected names by number, found {named!r}")
    numbered = all(re.fullmatch("[0-9]+", str(key)) for key in named)
    return tuple(str(named[key]) for key in (sorted(named, key=int) if numbered else named))


def labels_of(dataset: Mapping[str, Any], where: str) -> Labels:
    """The labels of a data set; the ignore label is not an output of the network.

    Args:
        dataset: the content of dataset.json.
        where: names the file in errors.

    Raises:
        SourceError: nnU-Net itself refuses such labels, or could not write them.
    """
    check_kinds(Dataset, dataset, where)
    declared = dataset.get("labels")
    if not isinstance(declared, Mapping) or not _is_background(declared.get("background")):
        raise SourceError(f"{where}: labels: expected names and values with background as 0, found {declared!r}")
    used = {name: _values(value, name, where) for name, value in declared.items() if name != IGNORE}
    every = sorted({value for values in used.values() for value in values})
    _check_ignore(declared.get(IGNORE), every[-1], where)
    foreground = tuple(value for value in every if value != 0)
    if any(len(value) > 1 for value in declared.values() if isinstance(value, list)):
        names = [name for name, value in declared.items() if name != IGNORE and not _is_empty_region(value)]
        return _regions(names, foreground, dataset.get("regions_class_order"), where)
    if every != list(range(len(every))):
        raise SourceError(f"{where}: labels: expected values without gaps from 0, found {every}")
    names = [next(name for name, values in used.items() if value in values) for value in every]
    return Labels(tuple(names), tuple(every), foreground, False)


def _regions(names: Sequence[str], foreground: tuple[int, ...], order: Any, where: str) -> Labels:
    """The regions; two may have one value, and the one that is painted later covers the other anyway."""
    if not isinstance(order, list) or len(order) != len(names):
        raise SourceError(
            f"{where}: regions_class_order: expected one value for each of {len(names)} regions "
            f"({', '.join(names)}), found {order!r}"
        )
    most = UINT8 if len(foreground) < UINT8 else UINT16
    values = _numbers(order)
    if min(values, default=-1) < 0 or max(values) > most:
        raise SourceError(f"{where}: regions_class_order: expected numbers from 0 to {most}, found {order}")
    return Labels(tuple(names), values, foreground, True)


def _numbers(values: Sequence[Any]) -> tuple[int, ...]:
    """Whole numbers, as nnU-Net takes them: whatever `int` takes, such as "1"; nothing where one is none."""
    try:
        return tuple(int(value) for value in values)
    except (TypeError, ValueError, OverflowError):
        return ()


def _values(value: Any, name: str, where: str) -> tuple[int, ...]:
    values = _numbers(value if isinstance(value, list) else [value])
    if not values or min(values) < 0:
        raise SourceError(f"{where}: labels.{name}: expected a whole number or a list of them, found {value!r}")
    return values


def _check_ignore(value: Any, largest: int, where: str) -> None:
    if value is not None and (not isinstance(value, int) or value != largest + 1):
        raise SourceError(f"{where}: labels.{IGNORE}: expected {largest + 1}, one above all others, found {value!r}")


def _is_background(value: Any) -> bool:
    return not isinstance(value, list) and _numbers([value]) == (0,)


def _is_empty_region(value: Any) -> bool:
    """nnU-Net compares with the number 0 here, so that a background written "0" is a region of its own."""
    return set(value) == {0} if isinstance(value, list) else value == 0
