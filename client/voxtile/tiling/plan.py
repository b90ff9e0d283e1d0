"""Where the tiles of a volume lie, and what each voxel of a tile weighs.

There are two semantics, each equal to its library's own: `monai` (`monai.inferers.sliding_window_inference`, MONAI 1.6)
and `nnunet` (`nnunetv2.inference.sliding_window_prediction`, nnU-Net 2.8). Knows nothing of scans, networks or servers:
shapes in, positions and weights out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from voxtile.card import Card, Tiling

MONAI_WEIGHT_FLOOR = 1e-3
"""MONAI clamps its Gaussian from below at this value, so that no voxel divides by nearly nothing."""

NNUNET_PEAK = 10.0
"""nnU-Net scales its Gaussian to this maximum before it rounds the weights to half precision."""

GAUSSIAN_TRUNCATE = 4.0
"""`scipy.ndimage.gaussian_filter` cuts its kernel off after this many standard deviations."""


@dataclass(frozen=True)
class Tile:
    """The place of one tile.

    Args:
        index: the number of the tile in its plan, from 0.
        start: first voxel along each axis, in the padded volume.
        shape: voxels along each axis.
    """

    index: int
    start: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def slices(self) -> tuple[slice, ...]:
        """The tile as an index into the spatial axes of the padded volume."""
        return tuple(slice(first, first + size) for first, size in zip(self.start, self.shape, strict=True))


@dataclass(frozen=True)
class TilePlan:
    """All tiles of one volume, in C order (the last axis runs fastest), and the weights within a tile.

    Args:
        image: shape of the volume.
        roi: shape of a tile.
        starts: for each axis, the first voxels of the tiles, in the padded volume.
        semantics: the card's tiling.
    """

    image: tuple[int, ...]
    roi: tuple[int, ...]
    starts: tuple[tuple[int, ...], ...]
    semantics: Tiling

    @cached_property
    def padded(self) -> tuple[int, ...]:
        """Shape of the volume once it is padded up to the ROI."""
        return tuple(max(size, tile) for size, tile in zip(self.image, self.roi, strict=True))

    @cached_property
    def before(self) -> tuple[int, ...]:
        """Voxels of padding in front of the volume, for each axis."""
        return tuple((full - size) // 2 for full, size in zip(self.padded, self.image, strict=True))

    @cached_property
    def weights(self) -> NDArray[np.float32]:
        """[*roi] float32: what each voxel of a tile weighs where tiles overlap."""
        if self.semantics.mode == "constant":
            return np.ones(self.roi, np.float32)
        if self.semantics.semantics == "nnunet":
            return nnunet_gaussian(self.roi, self.semantics.sigma_scale)
        return monai_gaussian(self.roi, self.semantics.sigma_scale)

    def __len__(self) -> int:
        return math.prod(len(axis) for axis in self.starts)

    def __iter__(self) -> Iterator[Tile]:
        for index, start in enumerate(itertools.product(*self.starts)):
            yield Tile(index, start, self.roi)


def plan_tiles(image: Sequence[int], roi: Sequence[int], tiling: Tiling) -> TilePlan:
    """Returns the tiles of shape `roi` of a volume of shape `image`, by the rule `tiling` of a card."""
    shape, tile = tuple(map(int, image)), tuple(map(int, roi))
    starts = nnunet_starts if tiling.semantics == "nnunet" else monai_starts
    axes = zip(shape, tile, _each(tiling.overlap, tile), strict=True)
    return TilePlan(shape, tile, tuple(starts(*axis) for axis in axes), tiling)


def _each(value: float | Sequence[float], roi: Sequence[int]) -> Sequence[float]:
    """`value` for each axis of a tile; a single number counts for all of them."""
    return value if isinstance(value, Sequence) else (value,) * len(roi)


def tile_shape(card: Card, image: Sequence[int]) -> tuple[int, int, int]:
    """Returns the shape of the tiles of a volume of shape `image`: the card's ROI, for a 2D network one slice thick.

    Where the network takes slices of any size, a tile is a whole slice, padded up to the card's multiple.
    """
    roi = list(card.roi_size)
    if card.slice_axis is not None:
        roi.insert(card.slice_axis, 1)
    if card.multiple is not None:
        roi = [1 if axis == card.slice_axis else -(-n // card.multiple) * card.multiple for axis, n in enumerate(image)]
    return roi[0], roi[1], roi[2]


def monai_starts(size: int, roi: int, overlap: float) -> tuple[int, ...]:
    """Returns the first voxels of the tiles along one axis: a fixed interval, the last tile shifted back to fit.

    The interval is `int(roi * (1 - overlap))` in floating point, as MONAI computes it: int(100 * (1 - .9)) is 9.
    """
    if size <= roi:
        return (0,)
    interval = max(int(roi * (1 - overlap)), 1)
    count = math.ceil((size - roi) / interval) + 1
    return tuple(min(i * interval, size - roi) for i in range(count))


def nnunet_starts(size: int, roi: int, overlap: float) -> tuple[int, ...]:
    """Returns the first voxels of the tiles along one axis: evenly spread, at most `roi * (1 - overlap)` apart."""
    if size <= roi:
        return (0,)
    if roi == 1:
        return tuple(range(size))
    count = math.ceil((size - roi) / (roi * (1 - overlap))) + 1
    step = (size - roi) / (count - 1)
    return tuple(round(step * i) for i in range(count))


def monai_gaussian(roi: Sequence[int], sigma: float | Sequence[float]) -> NDArray[np.float32]:
    """Returns MONAI's importance map [*roi]: exp(-x²/2σ²) along each axis, clamped from below, all in float32.

    Args:
        roi: voxels along each axis.
        sigma: σ as a share of the ROI's size, one for all axes or one for each.
    """
    weights: NDArray[np.float32] = np.ones((), np.float32)
    for size, share in zip(roi, _each(sigma, roi), strict=True):
        x = np.arange(size, dtype=np.float32) - np.float32((size - 1) / 2)
        axis = np.exp(x * x / np.float32(-2 * (size * share) ** 2))
        weights = np.multiply(weights[..., None], axis, dtype=np.float32)
    floor = max(float(weights.min()), MONAI_WEIGHT_FLOOR)
    np.maximum(weights, np.float32(floor), out=weights)
    return weights


def nnunet_gaussian(roi: Sequence[int], sigma: float | Sequence[float]) -> NDArray[np.float32]:
    """Returns nnU-Net's importance map [*roi]: a unit impulse at n//2, Gaussian filtered, rounded to half precision.

    Equal to `scipy.ndimage.gaussian_filter` of the impulse, which is separable. Zeros become the smallest weight that
    is not zero. Not symmetric for even sizes.

    Args:
        roi: voxels along each axis.
        sigma: standard deviation as a share of the ROI's size, one for all axes or one for each.
    """
    weights = np.ones((), np.float64)
    for size, share in zip(roi, _each(sigma, roi), strict=True):
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
