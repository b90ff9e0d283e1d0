"""Adds up the scores of overlapping tiles, a slab of planes at a time.

Knows nothing of scans or servers. Tiles come in the plan's order; as soon as no later tile reaches a plane, the
plane is divided by its weights and handed on, so that only one ROI's depth of scores is ever held.

    score(voxel) = Σ score(tile, voxel) · weight(voxel in tile) / Σ weight(voxel in tile)      (float32)
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from .tiling import Tile, TilePlan


class Stitcher:
    """Turns tiles' scores into finished planes along axis 0 of the volume.

    plan: where the tiles lie. channels: scores per voxel. background: what a voxel scores that no tile has reached
    (only where tiles were left out), one value a channel.
    """

    def __init__(self, plan: TilePlan, channels: int, background: NDArray[np.float32] | None = None) -> None:
        self._plan = plan
        self._background = background
        slab = (plan.roi[0], *plan.padded[1:])
        self._sums = np.zeros((channels, *slab), np.float32)
        self._scratch = np.empty((channels, *plan.roi), np.float32)
        # Where every tile takes part, all rows of tiles weigh the same; else the weights are summed like the scores.
        self._row = _row_weights(plan) if background is None else np.zeros(slab, np.float32)
        self._base = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers held from the first tile to the last."""
        return self._sums.nbytes + self._row.nbytes + self._scratch.nbytes

    def add(self, tile: Tile, scores: NDArray[np.generic]) -> Iterator[NDArray[np.float32]]:
        """Adds one tile's `scores` [channel, *roi]; yields the planes [channel, n, *plane] that this finishes.

        A yielded array is a view that the next call overwrites. Raises ValueError for a tile out of order.
        """
        yield from self._finish_before(tile.start[0])
        first = tile.start[0] - self._base
        inside = (slice(first, first + tile.shape[0]), *tile.slices[1:])
        np.multiply(scores, self._plan.weights, out=self._scratch)
        self._sums[(slice(None), *inside)] += self._scratch
        if self._background is not None:
            self._row[inside] += self._plan.weights

    def skip(self, tile: Tile) -> Iterator[NDArray[np.float32]]:
        """Passes over a tile that takes no part in the sums; yields the planes that this finishes."""
        yield from self._finish_before(tile.start[0])

    def finish(self) -> Iterator[NDArray[np.float32]]:
        """Yields the planes that are left after the last tile."""
        yield from self._finish_before(self._plan.padded[0])

    def _finish_before(self, plane: int) -> Iterator[NDArray[np.float32]]:
        if plane < self._base:
            raise ValueError(f"tiles come in order along axis 0: plane {plane} after plane {self._base} was finished")
        done = min(plane - self._base, self._sums.shape[1])
        if done <= 0:
            return
        finished = self._cropped(self._sums[:, :done], self._weights(done))
        if finished.shape[1]:
            yield finished
        self._shift(done)

    def _weights(self, done: int) -> NDArray[np.float32]:
        """Sums of weights [done, *plane] of the planes at the front of the buffer."""
        if self._background is not None:
            return self._row[:done]
        weights = np.zeros((done, *self._row.shape[1:]), np.float32)
        for start in self._plan.starts[0]:
            first, last = max(start, self._base), min(start + len(self._row), self._base + done)
            if first < last:
                weights[first - self._base : last - self._base] += self._row[first - start : last - start]
        return weights

    def _cropped(self, sums: NDArray[np.float32], weights: NDArray[np.float32]) -> NDArray[np.float32]:
        """Divides, and leaves out what padding added around the volume."""
        before, image = self._plan.before, self._plan.image
        first = max(before[0] - self._base, 0)
        last = max(min(before[0] + image[0] - self._base, sums.shape[1]), first)
        inner = (slice(first, last), *(slice(b, b + n) for b, n in zip(before[1:], image[1:], strict=True)))
        sums, weights = sums[(slice(None), *inner)], weights[inner]
        if self._background is None:
            return np.divide(sums, weights, out=sums)
        reached = weights > 0
        np.divide(sums, weights, out=sums, where=reached)
        for channel, value in zip(sums, self._background, strict=True):
            channel[~reached] = value
        return sums

    def _shift(self, done: int) -> None:
        """Moves the planes still in work to the front, in steps that never overlap, so that nothing is copied twice."""
        depth = self._sums.shape[1]
        for buffer in (*self._sums, *(() if self._background is None else (self._row,))):
            for first in range(done, depth, done):
                last = min(first + done, depth)
                buffer[first - done : last - done] = buffer[first:last]
            buffer[max(depth - done, 0) :] = 0
        self._base += done


def _row_weights(plan: TilePlan) -> NDArray[np.float32]:
    """Sums of weights [depth, *plane] of the tiles that begin at one plane along axis 0."""
    row = np.zeros((plan.roi[0], *plan.padded[1:]), np.float32)
    for start in itertools.product(*plan.starts[1:]):
        inside = tuple(slice(first, first + size) for first, size in zip(start, plan.roi[1:], strict=True))
        row[(slice(None), *inside)] += plan.weights
    return row
