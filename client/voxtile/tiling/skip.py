"""Finds tiles that hold nothing but background, so that a client may leave them out.

A tile is empty where no voxel in it, or within half a ROI of it, lies above the card's limit in any channel. Knows
nothing of servers. Whether leaving tiles out was harmless is found by a spot check elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.tiling.plan import TilePlan

BYTES_A_VOXEL = 6
"""Bytes for each voxel during the search: the summed-volume table, in 32 bits for nearly all scans, and two masks."""


def empty_tiles(data: NDArray[Any], plan: TilePlan, at_most: float | Sequence[float]) -> frozenset[int]:
    """Returns the indices of the empty tiles.

    Args:
        data: [channel, *grid] the prepared scan.
        plan: where the tiles lie.
        at_most: the value at or below which a voxel is empty, one for each channel or one for all.
    """
    counts = _counts_below_each_corner(_occupied(data, at_most))
    empty = set()
    for tile in plan:
        low, high = [], []
        # Where there is padding, the tile covers the whole axis anyway.
        for start, size, n in zip(tile.start, tile.shape, plan.image, strict=True):
            margin = size // 2
            low.append(max(start - margin, 0))
            high.append(min(start + size + margin, n))
        if _box_sum(counts, low, high) == 0:
            empty.add(tile.index)
    return frozenset(empty)


def empty_tiles_bytes(plan: TilePlan) -> int:
    """Returns the bytes that `empty_tiles` takes."""
    return BYTES_A_VOXEL * math.prod(plan.image)


def _occupied(data: NDArray[Any], at_most: float | Sequence[float]) -> NDArray[np.bool_]:
    limits = np.broadcast_to(at_most, len(data))
    occupied: NDArray[np.bool_] = data[0] > limits[0]
    for channel, limit in zip(data[1:], limits[1:], strict=True):
        occupied |= channel > limit
    return occupied


def _counts_below_each_corner(occupied: NDArray[np.bool_]) -> NDArray[Any]:
    """The summed-volume table: entry [i, j, k] counts the occupied voxels of [:i, :j, :k]."""
    table = np.zeros([n + 1 for n in occupied.shape], np.min_scalar_type(occupied.size))
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
