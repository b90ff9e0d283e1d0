"""Lists the structures of a mask as a page shows them: number, name, colour, and what was measured.

Knows nothing of HTML.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.card import Card
from voxtile.outputs.palette import palette_of
from voxtile.outputs.report import names_by_value
from voxtile.outputs.statistics import Statistics, statistics

UNNAMED = (1.0, 1.0, 1.0)
"""The colour of a value that the model does not name: white."""


@dataclass(frozen=True)
class Structure:
    """One structure.

    Attributes:
        number: what stands for it in the picture's mask, from 1 on.
        value: its value in the mask.
        name: what the model calls it.
        rgb: its colour, 0 to 255; the same as in the preview.
        measured: voxels, and intensities of the first channel.
    """

    number: int
    value: int
    name: str
    rgb: tuple[int, int, int]
    measured: Statistics


def structures_of(card: Card, data: NDArray[Any], labels: NDArray[Any]) -> tuple[Structure, ...]:
    """The structures of a mask, those without a voxel too.

    Args:
        card: the model's card.
        data: [i, j, k] the scan.
        labels: [i, j, k] the mask.
    """
    names = names_by_value(card)
    found = {0, *map(int, np.flatnonzero(_counts(labels)))}
    values = sorted({*names, *found} - {0})
    palette, measured = palette_of(card.labels), statistics(data, labels, values)
    return tuple(
        Structure(
            number,
            value,
            " + ".join(names.get(value, [f"value {value}, which the model does not name"])),
            _bytes_of(palette.get(value, UNNAMED)),
            measured[value],
        )
        for number, value in enumerate(values, 1)
    )


def numbered(labels: NDArray[Any], structures: tuple[Structure, ...]) -> NDArray[Any]:
    """[i, j, k] the numbers of the structures in place of their values, uint8, or uint16 for more than 255."""
    dtype = np.uint8 if len(structures) < 256 else np.uint16
    if all(one.number == one.value for one in structures):
        return labels.astype(dtype, copy=False)
    numbers = np.zeros(1 + max(one.value for one in structures), dtype)
    for one in structures:
        numbers[one.value] = one.number
    result: NDArray[Any] = numbers[labels]
    return result


def _counts(labels: NDArray[Any]) -> NDArray[np.int64]:
    size = 1 + int(labels.max(initial=0))
    counts = np.zeros(size, np.int64)
    for k in range(labels.shape[2]):  # plane by plane: bincount makes eight bytes of each voxel
        counts += np.bincount(labels[:, :, k].ravel(), minlength=size)
    return counts


def _bytes_of(colour: tuple[float, float, float]) -> tuple[int, int, int]:
    red, green, blue = (round(255 * part) for part in colour)
    return red, green, blue
