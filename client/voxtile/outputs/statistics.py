"""Measures the structures of a mask: voxels, and the intensities of the scan in them. Knows nothing of outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Statistics:
    """One structure in numbers, of the first channel in the scan's own units.

    Attributes:
        voxels: how many it has; the others are NaN where this is 0.
        mean: the mean intensity.
        minimum: the lowest intensity.
        maximum: the highest intensity.
        deviation: the standard deviation of the intensity, of the population.
    """

    voxels: int
    mean: float
    minimum: float
    maximum: float
    deviation: float


def statistics(data: NDArray[Any], labels: NDArray[Any], values: Sequence[int]) -> dict[int, Statistics]:
    """Voxels and intensities of labels, by their value.

    Args:
        data: [i, j, k] intensities.
        labels: [i, j, k] labels.
        values: the labels to look at.
    """
    size = 1 + max((int(labels.max(initial=0)), *values))
    count, total, squares = np.zeros(size, np.int64), np.zeros(size), np.zeros(size)
    low, high = np.full(size, np.inf), np.full(size, -np.inf)
    for k in range(labels.shape[2]):
        inside = labels[:, :, k] > 0
        label, value = labels[:, :, k][inside], data[:, :, k][inside].astype(np.float64)
        count += np.bincount(label, minlength=size)
        total += np.bincount(label, value, size)
        squares += np.bincount(label, value * value, size)
        np.minimum.at(low, label, value)
        np.maximum.at(high, label, value)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / count
        deviation = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return {
        value: Statistics(int(count[value]), float(mean[value]), float(low[value]), float(high[value]),
                          float(deviation[value]))
        for value in values
    }  # fmt: skip
