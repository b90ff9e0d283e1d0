"""Linear resampling along the axes of a grid, with two taps for each voxel and axis.

A change of spacing keeps the directions of the axes, so trilinear interpolation is three linear ones in turn, each a
pair of gathers and a blend: 2 ns a value, where a general sampler takes 30. Knows nothing of scans.

    out[i] = in[low] + weight · (in[high] - in[low]),   coordinate = scale · i + offset, clamped to the grid
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.chains.monai.placing import AT_ONCE, Placement, along
from voxtile.machine.cores import usable_cores

SAME_PLACE = 1e-4
"""Voxels by which all coordinates of an axis may differ from the indices and the axis still counts as unchanged:
float32 affines round by as much."""

WHOLE = 1e-6
"""Voxels by which one coordinate may miss a whole number through float64 arithmetic on affines."""

ROUNDING = 1e-5
"""Share of the largest value that three blends may be wrong by: in float32, with coordinates wrong by WHOLE."""

FEW = 1 / 32
"""Share of doubtful voxels up to which it is not worth asking which of them need not be looked at."""

SLAB_BYTES = 1 << 22
"""Resampled values worked on at a time: few enough to stay in a core's cache while three axes are resampled."""

MOST_THREADS = 4
"""With more threads than this, the machine's memory limits the speed, not its cores."""


@dataclass(frozen=True)
class AxisMap:
    """Where `target` voxels of an axis lie on `source` voxels of another: coordinate = scale · index + offset.

    Attributes:
        source: voxels of the source.
        target: voxels of the target.
        scale: source voxels between two target voxels.
        offset: the source coordinate of target voxel 0.
        undo: scale and offset of the way back, where it is known better than by arithmetic with this one.
        mirror: whether both axes were flipped afterwards; scale and offset are those before.
    """

    source: int
    target: int
    scale: float
    offset: float
    undo: tuple[float, float] | None = field(default=None, compare=False)
    mirror: bool = False

    @property
    def miss(self) -> float:
        """Voxels by which the first or the last coordinate differs from the index."""
        return max(abs(self.offset), abs(self.scale * (self.target - 1) + self.offset - (self.target - 1)))

    @cached_property
    def identity(self) -> bool:
        """Whether every voxel lies on the source voxel of the same index, so that nothing has to be done."""
        return self.source == self.target and self.miss <= SAME_PLACE

    @property
    def inverse(self) -> AxisMap:
        """The map back onto the source's voxels."""
        scale, offset = self.undo or (1 / self.scale, -self.offset / self.scale)
        return AxisMap(self.target, self.source, scale, offset, (self.scale, self.offset), self.mirror)

    @property
    def mirrored(self) -> AxisMap:
        """The same map with both axes flipped."""
        return replace(self, mirror=not self.mirror)

    @cached_property
    def places(self) -> NDArray[np.float64]:
        """[target] source coordinates as MONAI rounds them, clamped to the outermost voxels (padding by the border)."""
        places = along(self.scale, self.offset, self.source, self.target)
        return self.source - 1 - places[::-1] if self.mirror else places

    @cached_property
    def coordinates(self) -> NDArray[np.float64]:
        """[target] `places`, of which those that miss a whole number by rounding only are made whole.

        So a voxel that lies on another has its value, and not what float32 makes of it and its neighbour.
        """
        whole = np.rint(self.places)
        return np.where(np.abs(self.places - whole) < WHOLE, whole, self.places)

    def reach(self, margin: float) -> list[NDArray[np.intp]]:
        """Returns [target] each: the source voxels that a voxel may read if it lies up to `margin` elsewhere."""
        low = np.floor(self.places - margin - WHOLE).astype(np.intp)
        high = np.floor(self.places + margin + WHOLE).astype(np.intp) + 1
        return [np.clip(index, 0, self.source - 1) for index in (low, low + 1, high)]

    @cached_property
    def taps(self) -> Taps:
        """The two source voxels of each target voxel."""
        low = np.floor(self.coordinates).astype(np.intp)
        weight = (self.coordinates - low).astype(np.float32)
        return Taps(low, np.minimum(low + 1, self.source - 1), weight)

    @cached_property
    def nearest(self) -> NDArray[np.intp]:
        """[target] the source voxel nearest to each coordinate, halves to even as in torch's `grid_sample`."""
        if self.mirror:  # halves were even or odd before the axes were flipped
            return self.source - 1 - self.mirrored.nearest[::-1]
        return np.rint(self.places).astype(np.intp)


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


def resample(
    source: NDArray[Any],
    maps: Sequence[AxisMap],
    threads: int | None = None,
    placement: Placement | None = None,
    asked: Sequence[float] | None = (0.0,),
) -> NDArray[np.float32]:
    """Resamples a scan to the target grid of `maps`.

    Works in slabs along the axis that is slowest in memory, and lays the result out in the source's order. Apart from
    the result, only a few slabs are held (see `resample_bytes`).

    Args:
        source: [channel, x, y, z] of any real type and any strides.
        maps: one for each spatial axis.
        threads: threads that share the slabs; by default the usable cores.
        placement: the same as `maps`, to the last bit.
        asked: numbers that later steps compare values with. Values that may be one of them are computed by `placement`;
            None: all values are, which takes ten times as long.

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
        slab = result[channel, first:last]
        if placement is None or asked is not None:
            slab[...] = blend_axes(ordered[channel, part], (depth, taps[1], taps[2]))
        if placement is None:
            return
        doubt = all_of(slab.shape)
        if asked is not None:
            doubt = _doubtful(slab, ordered[channel], axes, first, placement.tilt, asked)
        for voxels in doubt:
            there = (voxels[0] + first, *voxels[1:])
            placed = [there[order.index(axis)] for axis in range(3)]
            placed = [m.target - 1 - v if back else v for m, v, back in zip(maps, placed, backward, strict=True)]
            slab[voxels] = placement.values(source[channel : channel + 1], placed)[0]

    with ThreadPoolExecutor(threads or usable_threads()) as pool:
        list(pool.map(work, jobs))
    return result.transpose(0, *(order.index(axis) + 1 for axis in range(3)))[flips]


def take_nearest(values: NDArray[Any], placement: Placement, threads: int | None = None) -> NDArray[Any]:
    """Returns `values` [x, y, z] on the target grid of `placement`, each voxel that of its nearest one."""
    lines = [line for line in map(placement.nearest_along, range(3)) if line is not None]
    if len(lines) == 3:
        for axis, line in enumerate(lines):
            values = values.take(line, axis)
        return values
    result = np.empty(placement.target, values.dtype)

    def work(voxels: tuple[NDArray[np.intp], ...]) -> None:
        places = [np.rint(placement.coordinate(axis, voxels)).astype(np.intp) for axis in range(3)]
        result[voxels] = values[tuple(places)]

    with ThreadPoolExecutor(threads or usable_threads()) as pool:
        list(pool.map(work, all_of(placement.target)))
    return result


def resample_bytes(maps: Sequence[AxisMap], channels: int) -> int:
    """Returns the bytes that `resample` takes: the result, and a few slabs for each thread."""
    return 4 * channels * math.prod(axis.target for axis in maps) + 5 * SLAB_BYTES * usable_threads()


def all_of(shape: Sequence[int]) -> Iterator[tuple[NDArray[np.intp], ...]]:
    """Yields the indices of all voxels [x, y, z], some rows at a time."""
    rows = max(AT_ONCE // shape[2], 1)
    planes = max(rows // shape[1], 1)
    for x, y in itertools.product(range(0, shape[0], planes), range(0, shape[1], rows)):
        yield np.ogrid[x : min(x + planes, shape[0]), y : min(y + rows, shape[1]), : shape[2]]


def _doubtful(
    slab: NDArray[np.float32],
    source: NDArray[Any],
    axes: Sequence[AxisMap],
    first: int,
    tilt: NDArray[np.float64],
    asked: Sequence[float],
) -> Iterator[tuple[NDArray[np.intp], ...]]:
    """Yields the indices of voxels that may have an asked number, or may not, some at a time.

    Args:
        slab: blended values, planes from `first` on.
        source: what they were blended from, with the axes in the slab's order.
        axes: the map of each axis.
        first: the slab's first plane.
        tilt: voxels by which coordinates may differ from those of `axes`.
        asked: the numbers.
    """
    reaches = [axis.reach(float(tilt.max())) for axis in axes]
    depth = [index[first : first + len(slab)] for index in reaches[0]]
    base, end = int(depth[0][0]), int(depth[-1][-1]) + 1
    reaches[0], part = [index - base for index in depth], source[base:end]
    unchanged = sum(axis.miss for axis in axes if axis.identity)
    limit = (ROUNDING + 2 * float(tilt.sum()) + 2 * unchanged) * max(-float(part.min()), float(part.max()))
    for number in asked:
        doubtful = (slab <= number + limit) & (slab >= number - limit)
        if np.count_nonzero(doubtful) > FEW * slab.size:  # where all neighbours have the number, so has the voxel
            doubtful &= _any_near(part != number, reaches)
        found = np.flatnonzero(doubtful)
        for start in range(0, len(found), AT_ONCE):
            yield np.unravel_index(found[start : start + AT_ONCE], slab.shape)


def _any_near(values: NDArray[np.bool_], reaches: Sequence[Sequence[NDArray[np.intp]]]) -> NDArray[np.bool_]:
    """For each target voxel, whether any of the source voxels is true that it may read along the axes."""
    for axis, reach in enumerate(reaches):
        values = reduce(np.logical_or, (values.take(index, axis) for index in reach))
    return values


def usable_threads() -> int:
    """Returns the number of threads that are worth using: the usable cores, at most MOST_THREADS."""
    return usable_cores(MOST_THREADS)


def _planes_a_slab(axes: Sequence[AxisMap]) -> int:
    """Target planes worked on at a time, so that neither they nor the source planes under them exceed SLAB_BYTES."""
    plane = 4 * max(math.prod(axis.target for axis in axes[1:]), math.prod(axis.source for axis in axes[1:]))
    return max(int(SLAB_BYTES / (plane * max(axes[0].scale, 1))), 1)
