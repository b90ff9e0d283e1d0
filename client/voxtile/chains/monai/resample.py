"""Linear resampling along the axes of a grid, with two taps for each voxel and axis.

A change of spacing keeps the directions of the axes, so trilinear interpolation is three linear ones in turn, each a
pair of gathers and a blend: 2 ns a value, where a general sampler takes 30. Knows nothing of scans.

    out[i] = in[low] + weight · (in[high] - in[low]),   coordinate = scale · i + offset, clamped to the grid
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.cores import usable_cores

SAME_PLACE = 1e-4
"""Voxels by which all coordinates of an axis may differ from the indices and the axis still counts as unchanged:
float32 affines round by as much."""

WHOLE = 1e-6
"""Voxels by which one coordinate may miss a whole number through float64 arithmetic on affines."""

SLAB_BYTES = 1 << 22
"""Resampled values worked on at a time: few enough to stay in a core's cache while three axes are resampled."""

MOST_THREADS = 4
"""With more threads than this, the machine's memory limits the speed, not its cores."""


@dataclass(frozen=True)
class AxisMap:
    """Where `target` voxels of an axis lie on `source` voxels of another: coordinate = scale · index + offset."""

    source: int
    target: int
    scale: float
    offset: float

    @cached_property
    def identity(self) -> bool:
        """Whether every voxel lies on the source voxel of the same index, so that nothing has to be done."""
        first, last = self.offset, self.scale * (self.target - 1) + self.offset - (self.target - 1)
        return self.source == self.target and max(abs(first), abs(last)) <= SAME_PLACE

    @property
    def inverse(self) -> AxisMap:
        """The map back onto the source's voxels."""
        return AxisMap(self.target, self.source, 1 / self.scale, -self.offset / self.scale)

    @property
    def mirrored(self) -> AxisMap:
        """The same map with both axes flipped."""
        return replace(self, offset=self.source - 1 - self.scale * (self.target - 1) - self.offset)

    @cached_property
    def coordinates(self) -> NDArray[np.float64]:
        """[target] source coordinates, clamped to the outermost voxels (padding by the border).

        Coordinates that miss a whole number by rounding only are made whole: a neighbour's share of 1e-12 would turn
        background into signal.
        """
        places = self.scale * np.arange(self.target) + self.offset
        whole = np.rint(places)
        return np.clip(np.where(np.abs(places - whole) < WHOLE, whole, places), 0, self.source - 1)

    @cached_property
    def taps(self) -> Taps:
        """The two source voxels of each target voxel."""
        low = np.floor(self.coordinates).astype(np.intp)
        weight = (self.coordinates - low).astype(np.float32)
        return Taps(low, np.minimum(low + 1, self.source - 1), weight)

    @cached_property
    def nearest(self) -> NDArray[np.intp]:
        """[target] the source voxel nearest to each coordinate, halves to even as in torch's `grid_sample`."""
        return np.rint(self.coordinates).astype(np.intp)


@dataclass(frozen=True, eq=False)
class Taps:
    """For each target voxel of an axis, its two source voxels and the share of the higher one: [target] each."""

    low: NDArray[np.intp]
    high: NDArray[np.intp]
    weight: NDArray[np.float32]

    def part(self, first: int, last: int) -> Taps:
        """Returns the taps of the targets [first, last), counted from the lowest source voxel that they read."""
        base = self.low[first]
        return Taps(self.low[first:last] - base, self.high[first:last] - base, self.weight[first:last])

    def span(self, first: int, last: int) -> slice:
        """Returns the source voxels that the targets [first, last) read."""
        return slice(int(self.low[first]), int(self.high[last - 1]) + 1)


def blend(values: NDArray[Any], axis: int, taps: Taps) -> NDArray[np.float32]:
    """Returns `values` resampled along one axis, counted from the front: float32, in C order."""
    low, high = (np.asarray(values.take(at, axis, mode="clip"), np.float32) for at in (taps.low, taps.high))
    weight = taps.weight.reshape([len(taps.weight) if a == axis else 1 for a in range(values.ndim)])
    high -= low
    high *= weight
    high += low
    return high


def blend_axes(values: NDArray[Any], taps: Sequence[Taps | None]) -> NDArray[Any]:
    """Returns `values` resampled along its last `len(taps)` axes, the one that shrinks most first.

    None in `taps` leaves an axis as it is.
    """
    if any(tap is not None for tap in taps):
        values = np.ascontiguousarray(values)  # else `take` would copy it, and twice
    first = values.ndim - len(taps)
    todo = [(first + axis, tap) for axis, tap in enumerate(taps) if tap is not None]
    for axis, tap in sorted(todo, key=lambda item: len(item[1].low) / values.shape[item[0]]):
        values = blend(values, axis, tap)
    return values


def resample(source: NDArray[Any], maps: Sequence[AxisMap], threads: int | None = None) -> NDArray[np.float32]:
    """Resamples a scan to the target grid of `maps`.

    Works in slabs along the axis that is slowest in memory, and lays the result out in the source's order. Apart from
    the result, only a few slabs are held (see `resample_bytes`).

    Args:
        source: [channel, x, y, z] of any real type and any strides.
        maps: one for each spatial axis.
        threads: threads that share the slabs; by default the usable cores.

    Returns:
        [channel, X, Y, Z] float32.
    """
    backward = [stride < 0 for stride in source.strides[1:]]
    flips = (slice(None), *(slice(None, None, -1 if back else 1) for back in backward))
    order = tuple(sorted(range(3), key=lambda axis: -abs(source.strides[axis + 1])))
    ordered = source[flips].transpose(0, *(axis + 1 for axis in order))
    axes = [maps[axis].mirrored if backward[axis] else maps[axis] for axis in order]
    result = np.empty((source.shape[0], *(axis.target for axis in axes)), np.float32)
    taps = [None if axis.identity else axis.taps for axis in axes]
    step = _planes_a_slab(axes)
    jobs = [(c, first) for c in range(source.shape[0]) for first in range(0, axes[0].target, step)]

    def work(job: tuple[int, int]) -> None:
        channel, first = job
        last = min(first + step, axes[0].target)
        if taps[0] is None:
            part, depth = slice(first, last), None
        else:
            part, depth = taps[0].span(first, last), taps[0].part(first, last)
        result[channel, first:last] = blend_axes(ordered[channel, part], (depth, taps[1], taps[2]))

    with ThreadPoolExecutor(threads or usable_threads()) as pool:
        list(pool.map(work, jobs))
    return result.transpose(0, *(order.index(axis) + 1 for axis in range(3)))[flips]


def resample_bytes(maps: Sequence[AxisMap], channels: int) -> int:
    """Returns the bytes that `resample` takes: the result, and a few slabs for each thread."""
    return 4 * channels * math.prod(axis.target for axis in maps) + 5 * SLAB_BYTES * usable_threads()


def usable_threads() -> int:
    """Returns the number of threads that are worth using: the usable cores, at most MOST_THREADS."""
    return usable_cores(MOST_THREADS)


def _planes_a_slab(axes: Sequence[AxisMap]) -> int:
    """Target planes worked on at a time, so that neither they nor the source planes under them exceed SLAB_BYTES."""
    plane = 4 * max(math.prod(axis.target for axis in axes[1:]), math.prod(axis.source for axis in axes[1:]))
    return max(int(SLAB_BYTES / (plane * max(axes[0].scale, 1))), 1)
