"""Cuts a patch out of a scan: voxel by voxel, or larger, smaller and turned.

Says of each voxel whether it lies inside the scan, and whether it is exactly background. Knows no statistics.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from voxtile.tiling.plan import NUMPY_MODES
from voxtile_build.arrays import Array

ZOOMED, ZOOM, UNEVEN = 0.8, (0.85, 1.2), 0.05
"""Share of the augmented patches that are zoomed; by how much, in scan voxels a patch voxel; and ± by axis."""

TURNED, ANGLE = 0.3, np.deg2rad(10)
"""Share of the augmented patches that are turned, and by how much at most in each plane."""

MARGIN = 2
"""Voxels around what is sampled, so that its edge is not taken for the scan's."""


@dataclass(frozen=True)
class Cut:
    """A patch.

    Attributes:
        values: [channel, *roi] float32 in the scan's unit; outside the scan its own voxels.
        inside: [*roi] bool.
        background: [channel, *roi] bool.
    """

    values: Array
    inside: Array
    background: Array


def draw_matrix(rng: np.random.Generator, axes: int) -> Array:
    """[axis, axis] from voxels of the patch to voxels of the scan, about the patch's middle."""
    scale = np.ones(axes)
    if rng.random() < ZOOMED:
        scale = rng.uniform(*ZOOM) * rng.uniform(1 - UNEVEN, 1 + UNEVEN, size=axes)
    matrix = np.diag(scale)
    if rng.random() < TURNED:
        for one in range(axes):
            for other in range(one + 1, axes):
                matrix = _turn(axes, one, other, rng.uniform(-ANGLE, ANGLE)) @ matrix
    return matrix


def _turn(axes: int, one: int, other: int, angle: float) -> Array:
    turn = np.eye(axes)
    turn[[one, other], [one, other]] = np.cos(angle)
    turn[one, other], turn[other, one] = -np.sin(angle), np.sin(angle)
    return turn


def covered(matrix: Array, roi: Sequence[int]) -> tuple[int, ...]:
    """How many voxels of the scan a patch covers along each axis."""
    return tuple(int(np.ceil(side)) for side in np.abs(matrix) @ np.asarray(roi))


def cut(volume: Array, start: Sequence[int], roi: Sequence[int], padding: str) -> Cut:
    """The window of `volume` [channel, *spatial] at `start`, voxel by voxel.

    Args:
        volume: of the scan.
        start: its first voxel, which may lie outside.
        roi: its size.
        padding: a padding mode; for all but `constant`, values outside are the scan's own.
    """
    sizes = volume.shape[1:]
    sources = [_sources(*axis, padding) for axis in zip(start, roi, sizes, strict=True)]
    places = [np.arange(first, first + side) for first, side in zip(start, roi, strict=True)]
    inside = [(place >= 0) & (place < size) for place, size in zip(places, sizes, strict=True)]
    values = volume
    for axis, own in enumerate(sources, 1):
        values = values.take(own, axis)
    whole = functools.reduce(np.logical_and.outer, inside)
    return Cut(values.astype(np.float32), whole, np.zeros(values.shape, bool))


def _sources(start: int, side: int, size: int, padding: str) -> Array:
    """[side] the voxels of a scan of `size` that a window of `side` shows along an axis."""
    before, after = max(-start, 0), max(start + side - size, 0)
    padded = np.pad(np.arange(size), (before, after), NUMPY_MODES.get(padding, "edge"))  # type: ignore[call-overload]
    first = start + before
    return np.asarray(padded[first : first + side])


def sample(
    volume: Array, start: Sequence[int], matrix: Array, roi: Sequence[int], backgrounds: Sequence[float | None]
) -> Cut:
    """A patch of `roi` voxels whose middle is that of the window at `start`, zoomed and turned by `matrix`.

    Between voxels values are linear; what lies inside, and what is background, is that of the nearest voxel.
    """
    middle = np.asarray(start) + (np.asarray(covered(matrix, roi)) - 1) / 2
    offset = middle - matrix @ ((np.asarray(roi) - 1) / 2)
    window, offset = _surroundings(volume, matrix, offset, roi)
    resample = {"matrix": matrix, "offset": offset, "output_shape": tuple(roi)}
    # Zeros around the ones: beyond the outermost voxels' middles SciPy would see the end already.
    ones = np.pad(np.ones(window.shape[1:], np.uint8), 1)
    inside = ndimage.affine_transform(ones, order=0, mode="constant", **{**resample, "offset": offset + 1})
    values = [ndimage.affine_transform(one, order=1, mode="nearest", **resample) for one in window.astype(np.float32)]
    background = [
        ndimage.affine_transform(one.view(np.uint8), order=0, mode="nearest", **resample)
        for one in _equal(window, backgrounds)
    ]
    return Cut(np.stack(values), inside.astype(bool), np.stack(background).astype(bool))


def _surroundings(volume: Array, matrix: Array, offset: Array, roi: Sequence[int]) -> tuple[Array, Array]:
    """The part of `volume` that a patch needs, and the offset in it."""
    ends = np.stack(np.meshgrid(*((0, side - 1) for side in roi), indexing="ij"), axis=-1).reshape(-1, len(roi))
    corners = ends @ matrix.T + offset
    sizes = np.asarray(volume.shape[1:])
    first = np.clip(np.floor(corners.min(axis=0)).astype(int) - MARGIN, 0, sizes - 1)
    last = np.clip(np.ceil(corners.max(axis=0)).astype(int) + MARGIN + 1, first + 1, sizes)
    slices = tuple(slice(low, high) for low, high in zip(first, last, strict=True))
    return volume[(slice(None), *slices)], offset - first


def _equal(values: Array, backgrounds: Sequence[float | None]) -> Array:
    """Which voxels of [channel, *spatial] are exactly background."""
    return np.stack(
        [
            np.zeros(channel.shape, bool) if background is None else channel == background
            for channel, background in zip(values, backgrounds, strict=True)
        ]
    )
