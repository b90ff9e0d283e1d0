"""Stitching in half precision: half the memory, and results that differ in the last of float16's ten bits.

The mean so far is kept for each voxel, since no number of tiles and no weight can drive it out of float16's range:

    mean += (score - mean) · weight / Σ weight so far      (computed in float32, kept in float16)

Knows nothing of scans or servers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.tiling.plan import TilePlan
from voxtile.tiling.stitch import PORTION, Stitcher, portion_voxels, scratch_shape, slab_shape
from voxtile.tiling.strips import Strip

LARGEST = float(np.finfo(np.float16).max)


class Fp16Stitcher(Stitcher):
    """A Stitcher that holds two bytes for each score. Scores beyond ±65504 count as ±65504."""

    _kept_as = np.float16
    _needs_running_weights = True

    @classmethod
    def predicted_bytes(cls, plan: TilePlan, channels: int, strip: Strip | None = None) -> int:
        """Returns the bytes that a stitcher with these arguments takes at its peak.

        Means in float16, weights in float32, and scratch. Beside them, a few finished planes of all channels widened to
        float32, which the caller may still hold while the next are widened, or shares of weights computed.
        """
        slab = slab_shape(plan, strip)
        scratch, finished = math.prod(scratch_shape(plan, strip)), channels * portion_voxels(slab)
        return (2 * channels + 4) * math.prod(slab) + 4 * (scratch + finished + max(scratch, finished))

    @classmethod
    def planes_at_once(cls, plan: TilePlan) -> int:
        return PORTION

    def _accumulate(self, scores: NDArray[Any], weights: NDArray[np.float32], inside: tuple[slice, ...]) -> None:
        window, so_far = self._sums[(slice(None), *inside)], self._row[inside]
        so_far += weights
        for planes, step in self._portions(weights.shape):
            share = weights[planes] / so_far[planes]
            for channel, means in zip(scores, window, strict=True):
                np.subtract(channel[planes], means[planes], out=step, dtype=np.float32)
                step *= share
                step += means[planes]
                np.clip(step, -LARGEST, LARGEST, out=step)
                means[planes] = step
            del share  # before the next one is made

    def _finished(self, first: int, last: int) -> Iterator[NDArray[np.float32]]:
        for start in range(first, last, PORTION):
            part = slice(start, min(start + PORTION, last))
            planes = self._sums[:, part].astype(np.float32)
            self._fill_background(planes, self._row[part])
            yield planes
