"""Reads channels and labels from nnU-Net's dataset.json, by the rules of its LabelManager (nnunetv2 2.8.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from voxtile_build.errors import SourceError

IGNORE = "ignore"


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
    """Names of the images of one scan, in the order of their numbers (_0000, _0001, …)."""
    named = dataset.get("channel_names", dataset.get("modality"))
    if not isinstance(named, Mapping) or not named:
        raise SourceError(f"{where}: channel_names: expected names by number, found {named!r}")
    try:
        return tuple(str(named[key]) for key in sorted(named, key=int))
    except ValueError:
        raise SourceError(f"{where}: channel_names: expected the keys 0, 1, …, found {', '.join(named)}") from None


def labels_of(dataset: Mapping[str, Any], where: str) -> Labels:
    """The labels of a data set; the ignore label is not an output of the network.

    Args:
        dataset: the content of dataset.json.
        where: names the file in errors.

    Raises:
        SourceError: nnU-Net itself refuses such labels, or regions share a value of the mask.
    """
    declared = dataset.get("labels")
    if not isinstance(declared, Mapping) or not _is_background(declared.get("background")):
        raise SourceError(f"{where}: labels: expected names and values with background as 0, found {declared!r}")
    used = {name: _values(value, name, where) for name, value in declared.items() if name != IGNORE}
    every = sorted({value for values in used.values() for value in values})
    foreground = tuple(value for value in every if value != 0)
    if any(len(value) > 1 for value in declared.values() if isinstance(value, list)):
        return _regions(used, foreground, dataset.get("regions_class_order"), where)
    if every != list(range(len(every))):
        raise SourceError(f"{where}: labels: expected values without gaps from 0, found {every}")
    names = tuple(next(name for name, values in used.items() if value in values) for value in every)
    return Labels(names, tuple(every), foreground, False)


def _regions(used: Mapping[str, tuple[int, ...]], foreground: tuple[int, ...], order: Any, where: str) -> Labels:
    names = tuple(name for name, values in used.items() if set(values) != {0})
    if not isinstance(order, list) or len(order) != len(names):
        raise SourceError(
            f"{where}: regions_class_order: expected one value for each of {len(names)} regions "
            f"({', '.join(names)}), found {order!r}"
        )
    if len(set(order)) < len(order):
        raise SourceError(f"{where}: regions_class_order: expected every value once, found {order}")
    return Labels(names, tuple(int(value) for value in order), foreground, True)


def _values(value: Any, name: str, where: str) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, list) else (value,)
    if not values or not all(type(one) is int and one >= 0 for one in values):
        raise SourceError(f"{where}: labels.{name}: expected a whole number or a list of them, found {value!r}")
    return values


def _is_background(value: Any) -> bool:
    return type(value) is int and value == 0
