"""Which tiles hold nothing: the opt-in that leaves out tiles outside the body.

A tile is empty where no voxel within half a ROI of it lies above the card's threshold, in any channel. Knows
nothing of servers; whether leaving out was harmless is asked by an audit elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.tiling.plan import TilePlan


def empty_tiles(data: NDArray[Any], plan: TilePlan, at_most: float | Sequence[float]) -> frozenset[int]:
    """Indices of the tiles of `data` [channel, *grid] that hold nothing above `at_most` (one figure a channel or one
    for all) in themselves and half a ROI around."""
    counts = _counts_below_each_corner(_occupied(data, at_most))
    empty = set()
    for tile in plan:
        low, high = [], []
        for start, size, before, n in zip(tile.start, tile.shape, plan.before, plan.image, strict=True):
            margin = size // 2
            low.append(min(max(start - before - margin, 0), n))
            high.append(min(max(start - before + size + margin, 0), n))
        if _box_sum(counts, low, high) == 0:
            empty.add(tile.index)
    return frozenset(empty)


def _occupied(data: NDArray[Any], at_most: float | Sequence[float]) -> NDArray[np.bool_]:
    limits = np.broadcast_to(np.asarray(at_most, np.float64), len(data))
    occupied: NDArray[np.bool_] = data[0] > limits[0]
    for channel, limit in zip(data[1:], limits[1:], strict=True):
        occupied |= channel > limit
    return occupied


def _counts_below_each_corner(occupied: NDArray[np.bool_]) -> NDArray[Any]:
    """The summed-volume table: entry [i, j, k] counts the occupied voxels of [:i, :j, :k]."""
    table = np.zeros([n + 1 for n in occupied.shape], np.uint32 if occupied.size < 2**32 else np.int64)
    inner = table[tuple(slice(1, None) for _ in occupied.shape)]
    inner[...] = occupied
    for axis in range(occupied.ndim):
        np.cumsum(inner, axis=axis, out=inner)
    return table


def _box_sum(table: NDArray[Any], low: Sequence[int], high: Sequence[int]) -> int:
    total = 0
    for corner in np.ndindex(*(2,) * table.ndim):
        at = tuple(high[axis] if upper else low[axis] for axis, upper in enumerate(corner))
        total += (-1) ** (table.ndim - sum(corner)) * int(table[at])
    return total
