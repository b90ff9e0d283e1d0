"""What the values of a scan look like in a few numbers: those of the body, without the background around it.

Knows nothing of models or files.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

BACKGROUND = 0.03
"""A value that at least this share of the voxels have may be a background."""

STANDS_OUT = 3.0
"""And it has so many times the voxels of any other: in a scan of few whole numbers, neighbours are as frequent."""

MOST_VOXELS = 250_000
"""Of larger scans every n-th voxel of each axis is looked at: sorting these takes some 20 ms."""

STEPS = 1000
"""The background is looked for among so many quantiles."""


class InputStatistics(BaseModel):
    """The body's values in one channel, in the scan's own units or after the scan's own normalisation.

    Percentiles stand for the lowest and the highest value: a single voxel may be anything.

    Attributes:
        mean: their mean.
        std: their standard deviation, of the population.
        p1: their first percentile.
        p99: their 99th percentile.
    """

    mean: float
    std: float
    p1: float
    p99: float


def input_statistics(data: NDArray[Any], normalise: NDArray[Any] | None) -> tuple[InputStatistics, ...]:
    """What a network is given, in a few numbers a channel.

    Args:
        data: [channel, *spatial]; `thinned` is enough of it.
        normalise: [channel, 2] what the model subtracts and divides by; None where it needs neither.
    """
    found = []
    for number, channel in enumerate(data):
        values = channel.astype(np.float64)
        if normalise is not None:
            subtract, divide = (float(figure) for figure in normalise[number])
            values = (values - subtract) / divide
        found.append(_statistics(values))
    return tuple(found)


def thinned(data: NDArray[Any]) -> NDArray[Any]:
    """Every n-th voxel of each axis of `data` [channel, *spatial], at most about MOST_VOXELS a channel; a view."""
    spatial = data.shape[1:]
    step = max(1, math.ceil((math.prod(spatial) / MOST_VOXELS) ** (1 / max(len(spatial), 1))))
    return data[(slice(None), *(slice(None, None, step),) * len(spatial))]


def most_frequent(values: NDArray[Any]) -> float | None:
    """The value that so many of `values` have that it must be a background; None where there is none."""
    found, counts = np.unique(values, return_counts=True)
    most = int(counts.argmax())
    others = np.delete(counts, most).max(initial=0)
    is_background = counts[most] >= max(BACKGROUND * len(values), STANDS_OUT * others)
    return float(found[most]) if is_background else None


def _statistics(values: NDArray[np.float64]) -> InputStatistics:
    ordered = np.sort(values, axis=None)
    quantiles = ordered[np.rint(np.linspace(0, ordered.size - 1, STEPS + 1)).astype(int)]
    body = ordered[ordered != most_frequent(quantiles)]
    body = body if body.size else ordered
    p1, p99 = np.percentile(body, (1, 99))
    return InputStatistics(mean=float(body.mean()), std=float(body.std()), p1=float(p1), p99=float(p99))
