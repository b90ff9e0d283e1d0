"""Adds up the scores of overlapping tiles, a slab of planes at a time.

Tiles come in the plan's order. As soon as no later tile reaches a plane, the plane is divided by its weights and
yielded, so only one ROI's depth of scores is held. Knows nothing of scans or servers.

    score(voxel) = Σ score(tile, voxel) · weight(voxel in tile) / Σ weight(voxel in tile)      (float32)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.half_floats import widen
from voxtile.tiling.plan import Tile, TilePlan
from voxtile.tiling.strips import Span, Strip

SCRATCH_BYTES = 1 << 18
"""Bytes of the products worked on at a time: few enough to be still in a core's cache when they are added up."""

PORTION = 2
"""Planes that are finished at a time: the weights or widened sums of all planes would take as much as a score."""


class Stitcher:
    """Turns tiles' scores into finished planes along axis 0 of the volume.

    Args:
        plan: where the tiles lie.
        channels: scores of a voxel.
        background: [channel] what a voxel scores that no tile has reached; given only where tiles are left out.
        strip: the part of each plane that is stitched, for which `add` takes the tiles that touch it; by default the
            whole plane.
    """

    _kept_as: type[np.floating[Any]] = np.float32
    _needs_running_weights = False

    def __init__(
        self,
        plan: TilePlan,
        channels: int,
        background: NDArray[np.float32] | None = None,
        strip: Strip | None = None,
    ) -> None:
        self._plan = plan
        self._background = background
        self._window = plane_window(plan, strip)
        slab = slab_shape(plan, strip)
        self._sums = np.zeros((channels, *slab), self._kept_as)
        self._scratch = np.empty(scratch_shape(plan, strip), np.float32)
        # Where every tile takes part, all rows of tiles weigh the same; else the weights are summed like the scores.
        self._weighed_by_tile = self._needs_running_weights or background is not None
        self._row = np.zeros(slab, np.float32) if self._weighed_by_tile else self._row_weights(slab)
        self._base = 0

    @classmethod
    def predicted_bytes(cls, plan: TilePlan, channels: int, strip: Strip | None = None) -> int:
        """Returns the bytes that a stitcher with these arguments takes at its peak.

        In float32: sums [channel, depth, *plane], weights [depth, *plane], and scratch for a few planes of a tile and
        of the slab.
        """
        slab = slab_shape(plan, strip)
        return 4 * ((channels + 1) * math.prod(slab) + math.prod(scratch_shape(plan, strip)) + portion_voxels(slab))

    @classmethod
    def planes_at_once(cls, plan: TilePlan) -> int:
        """Returns how many planes come in one array that is yielded, at most."""
        return plan.roi[0]

    def add(self, tile: Tile, scores: NDArray[np.generic]) -> Iterator[NDArray[np.float32]]:
        """Adds one tile's `scores` [channel, *roi]; yields the planes [channel, n, *plane] that this finishes.

        A yielded array is a view that the next call overwrites.

        Raises:
            ValueError: the tile is out of order.
        """
        yield from self._finish_before(tile.start[0])
        own, inside = self._overlap(tile.start[1:])
        weights = self._plan.weights[(slice(None), *own)]
        self._accumulate(scores[(slice(None), slice(None), *own)], weights, (slice(None), *inside))

    def skip(self, tile: Tile) -> Iterator[NDArray[np.float32]]:
        """Leaves a tile out of the sums; yields the planes that this finishes."""
        yield from self._finish_before(tile.start[0])

    def finish(self) -> Iterator[NDArray[np.float32]]:
        """Yields the planes that remain after the last tile."""
        yield from self._finish_before(self._plan.padded[0])

    # What is summed ------------------------------------------------------------------------------------------

    def _accumulate(self, scores: NDArray[Any], weights: NDArray[np.float32], inside: tuple[slice, ...]) -> None:
        """Adds `scores` [channel, x, y, z] times `weights` to the sums `inside` the buffer, a few planes at a time."""
        window = self._sums[(slice(None), *inside)]
        for planes, product in self._portions(weights.shape):
            for channel, sums in zip(scores, window, strict=True):
                if channel.dtype == np.float16:
                    widen(channel[planes], product)
                    product *= weights[planes]
                else:
                    np.multiply(channel[planes], weights[planes], out=product)
                sums[planes] += product
        if self._weighed_by_tile:
            self._row[inside] += weights

    def _finished(self, first: int, last: int) -> Iterator[NDArray[np.float32]]:
        """Yields the planes [first, last) of the buffer, all of whose tiles have come."""
        for start in range(first, last, PORTION):
            self._divide(start, min(start + PORTION, last))
        yield self._sums[:, first:last]

    def _divide(self, first: int, last: int) -> None:
        """Divides the planes [first, last) of the buffer by their weights."""
        sums, weights = self._sums[:, first:last], self._weights(first, last)
        np.divide(sums, weights, out=sums, where=True if self._background is None else weights > 0)
        self._fill_background(sums, weights)

    # Where it lies -------------------------------------------------------------------------------------------

    def _portions(self, shape: tuple[int, ...]) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Yields the planes of a tile's `shape` in turn, each time with scratch for one channel of them."""
        step = len(self._scratch)
        for first in range(0, shape[0], step):
            planes = slice(first, min(first + step, shape[0]))
            yield planes, self._scratch[(slice(planes.stop - first), *map(slice, shape[1:]))]

    def _overlap(self, start: Sequence[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """Returns what a tile that begins at `start` shares with the window: within the tile, and within the window."""
        own, inside = [], []
        for first, size, (low, high) in zip(start, self._plan.roi[1:], self._window, strict=True):
            begin, end = max(first, low), min(first + size, high)
            own.append(slice(begin - first, end - first))
            inside.append(slice(begin - low, end - low))
        return tuple(own), tuple(inside)

    def _row_weights(self, slab: tuple[int, ...]) -> NDArray[np.float32]:
        """Returns the sums of weights [depth, *plane] of the tiles that begin at one plane along axis 0."""
        row = np.zeros(slab, np.float32)
        axes = zip(self._plan.starts[1:], self._plan.roi[1:], self._window, strict=True)
        reaching = [
            [first for first in starts if first < high and first + size > low] for starts, size, (low, high) in axes
        ]
        for start in itertools.product(*reaching):
            own, inside = self._overlap(start)
            row[(slice(None), *inside)] += self._plan.weights[(slice(None), *own)]
        return row

    def _weights(self, first: int, last: int) -> NDArray[np.float32]:
        """Returns the sums of weights of planes [first, last) of the buffer, all of whose tiles have come."""
        if self._weighed_by_tile:
            return self._row[first:last]
        weights = np.zeros((last - first, *self._row.shape[1:]), np.float32)
        for start in self._plan.starts[0]:
            row = start - self._base
            begin, end = max(row, first), min(row + len(self._row), last)
            if begin < end:
                weights[begin - first : end - first] += self._row[begin - row : end - row]
        return weights

    # What is yielded -----------------------------------------------------------------------------------------

    def _finish_before(self, plane: int) -> Iterator[NDArray[np.float32]]:
        """Yields the planes that no later tile reaches, without those that padding added."""
        done, depth = plane - self._base, self._sums.shape[1]
        if not 0 <= done <= depth:
            raise ValueError(
                f"tiles come in order along axis 0: found plane {plane}, where planes from {self._base} to "
                f"{self._base + depth} are held"
            )
        if done == 0:
            return
        # An axis that is padded has a single tile, so that all of its planes are finished at once.
        first = self._plan.before[0]
        yield from self._finished(first, min(first + self._plan.image[0], done))
        self._shift(done)

    def _fill_background(self, sums: NDArray[Any], weights: NDArray[np.float32]) -> None:
        if self._background is None:
            return
        unreached = weights == 0
        for channel, value in zip(sums, self._background, strict=True):
            channel[unreached] = value

    def _shift(self, done: int) -> None:
        """Moves the unfinished planes to the front, in steps that never overlap, so that nothing is copied twice."""
        depth = self._sums.shape[1]
        for buffer in (*self._sums, *((self._row,) if self._weighed_by_tile else ())):
            for first in range(done, depth, done):
                last = min(first + done, depth)
                buffer[first - done : last - done] = buffer[first:last]
            buffer[max(depth - done, 0) :] = 0
        self._base += done


def plane_window(plan: TilePlan, strip: Strip | None = None) -> tuple[Span, ...]:
    """Returns the span of each axis of a plane that is stitched, in the padded volume but without the padding."""
    spans = [(0, size) for size in plan.image]
    if strip is not None:
        spans[strip.axis] = strip.rows
    return tuple((before + first, before + last) for before, (first, last) in zip(plan.before, spans, strict=True))[1:]


def scratch_shape(plan: TilePlan, strip: Strip | None = None) -> tuple[int, ...]:
    """Returns the voxels of one score worked on at a time: as many planes of a tile as stay in a core's cache."""
    depth, *plane = map(min, plan.roi, slab_shape(plan, strip))
    return min(depth, max(SCRATCH_BYTES // (4 * math.prod(plane)), 1)), *plane


def slab_shape(plan: TilePlan, strip: Strip | None = None) -> tuple[int, ...]:
    """Returns the voxels whose scores are held at a time: one ROI's depth of the window."""
    return plan.roi[0], *(last - first for first, last in plane_window(plan, strip))


def portion_voxels(slab: tuple[int, ...]) -> int:
    """Returns the voxels of the planes that are finished at a time, of a slab of shape `slab`."""
    return min(PORTION, slab[0]) * math.prod(slab[1:])
