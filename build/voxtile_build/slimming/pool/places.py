"""Where a patch lies in a scan: around the body, or anywhere, as a tiler's windows.

Works in voxels of the grid that the ROI has: for a 2D network that of a slice. Knows no values.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from voxtile_build.arrays import Array

CENTRED = 0.5
"""Share of the patches around a voxel of the body. The others lie anywhere, many of them nearly empty: a student that
normalises each patch by itself must learn to tell such windows apart."""

JITTER = 0.25
"""Of a side, by which the body's voxel may miss the middle; otherwise the middle would never be background."""

OVERSHOOT = 0.4
"""Of a side, by which a window may miss the scan before it is moved to the edge: a tiler has many windows there."""

OUTSIDE = 0.12
"""Share of the augmented patches that stay partly outside, as windows over a scan that is smaller than the ROI."""


def draw_start(
    rng: np.random.Generator, shape: Sequence[int], size: Sequence[int], body: Array, *, outside: bool
) -> tuple[int, ...]:
    """The first voxel of a window; a side that is longer than the scan lies around its middle, as a tiler pads.

    Args:
        rng: draws it.
        shape: of the scan, an axis of the window each.
        size: of the window.
        body: [axis] a voxel of the body.
        outside: whether the window may lie partly outside the scan.
    """
    sides, room = np.asarray(size), np.subtract(shape, size)
    if rng.random() < CENTRED:
        start = body - sides // 2 + _jitter(rng, sides * JITTER)
    else:
        miss = (sides * OVERSHOOT).astype(int)
        start = rng.integers(np.minimum(-miss, room), np.maximum(room + miss, 1))
    if outside and rng.random() < OUTSIDE:
        return _partly_outside(rng, room, sides)
    centred = -((sides - np.asarray(shape)) // 2)
    return tuple(int(one) for one in np.where(room < 0, centred, np.clip(start, 0, np.maximum(room, 0))))


def _jitter(rng: np.random.Generator, most: Array) -> Array:
    whole = most.astype(int)
    return rng.integers(-whole, whole + 1)


def _partly_outside(rng: np.random.Generator, room: Array, sides: Array) -> tuple[int, ...]:
    """A window of which up to the overshoot lies outside, along one axis."""
    start = [int(rng.integers(min(space, 0), max(space, 0) + 1)) for space in room]
    axis = int(rng.integers(len(sides)))
    miss = int(rng.integers(1, max(int(sides[axis] * OVERSHOOT), 1) + 1))
    start[axis] = -miss if rng.random() < 0.5 else int(room[axis]) + miss
    return tuple(start)
