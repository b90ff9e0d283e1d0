"""Lays tiles as `monai.inferers.sliding_window_inference` does (MONAI 1.6)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from voxtile.tiling.rules.base import TilingRule, for_each_axis

MONAI_WEIGHT_FLOOR = 1e-3
"""MONAI clamps its Gaussian from below at this value, so that no voxel divides by nearly nothing."""


def monai_starts(size: int, roi: int, overlap: float) -> tuple[int, ...]:
    """Returns the first voxels of the tiles along one axis: a fixed interval, the last tile shifted back to fit.

    The interval is `int(roi * (1 - overlap))` in floating point, as MONAI computes it: int(100 * (1 - .9)) is 9.
    """
    if size <= roi:
        return (0,)
    interval = max(int(roi * (1 - overlap)), 1)
    count = math.ceil((size - roi) / interval) + 1
    return tuple(min(i * interval, size - roi) for i in range(count))


def monai_gaussian(roi: Sequence[int], sigma: float | Sequence[float]) -> NDArray[np.float32]:
    """Returns MONAI's importance map [*roi]: exp(-x²/2σ²) along each axis, clamped from below, all in float32.

    Args:
        roi: voxels along each axis.
        sigma: σ as a share of the ROI's size, one for all axes or one for each.
    """
    weights: NDArray[np.float32] = np.ones((), np.float32)
    for size, share in zip(roi, for_each_axis(sigma, roi), strict=True):
        x = np.arange(size, dtype=np.float32) - np.float32((size - 1) / 2)
        axis = np.exp(x * x / np.float32(-2 * (size * share) ** 2))
        weights = weights[..., None] * axis
    floor = max(float(weights.min()), MONAI_WEIGHT_FLOOR)
    np.maximum(weights, np.float32(floor), out=weights)
    return weights


MONAI = TilingRule("monai", monai_starts, monai_gaussian)
