"""Lays tiles as `nnunetv2.inference.sliding_window_prediction` does (nnU-Net 2.8)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from voxtile.tiling.rules.base import TilingRule, for_each_axis

NNUNET_PEAK = 10.0
"""nnU-Net scales its Gaussian to this maximum before it rounds the weights to half precision."""

GAUSSIAN_TRUNCATE = 4.0
"""`scipy.ndimage.gaussian_filter` cuts its kernel off after this many standard deviations."""


def nnunet_starts(size: int, roi: int, overlap: float) -> tuple[int, ...]:
    """Returns the first voxels of the tiles along one axis: evenly spread, at most `roi * (1 - overlap)` apart."""
    if size <= roi:
        return (0,)
    if roi == 1:
        return tuple(range(size))
    count = math.ceil((size - roi) / (roi * (1 - overlap))) + 1
    step = (size - roi) / (count - 1)
    return tuple(round(step * i) for i in range(count))


def nnunet_gaussian(roi: Sequence[int], sigma: float | Sequence[float]) -> NDArray[np.float32]:
    """Returns nnU-Net's importance map [*roi]: a unit impulse at n//2, Gaussian filtered, rounded to half precision.

    Equal to `scipy.ndimage.gaussian_filter` of the impulse, which is separable. Zeros become the smallest weight that
    is not zero. Not symmetric for even sizes.

    Args:
        roi: voxels along each axis.
        sigma: standard deviation as a share of the ROI's size, one for all axes or one for each.
    """
    weights = np.ones(())
    for size, share in zip(roi, for_each_axis(sigma, roi), strict=True):
        weights = weights[..., None] * _filtered_impulse(size, size * share)
    single = (weights / (weights.max() / NNUNET_PEAK)).astype(np.float32)
    half = single.astype(np.float16)  # by way of float32, as torch rounds double to half
    half[half == 0] = half[half != 0].min()
    rounded: NDArray[np.float32] = half.astype(np.float32)
    return rounded


def _filtered_impulse(size: int, sigma: float) -> NDArray[np.float64]:
    """A unit impulse at size//2 of one axis, filtered with a Gaussian of `sigma` voxels."""
    radius = int(GAUSSIAN_TRUNCATE * sigma + 0.5)
    x = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 / sigma**2 * x**2)
    distance = np.arange(size) - size // 2
    inside = np.abs(distance) <= radius
    return np.where(inside, (kernel / kernel.sum())[np.clip(distance + radius, 0, 2 * radius)], 0.0)


NNUNET = TilingRule("nnunet", nnunet_starts, nnunet_gaussian)
