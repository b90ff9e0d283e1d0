"""Stitching with sums in half precision: half the memory, and results that differ in the last of ten bits.

What is kept is each voxel's mean so far, which no number of tiles and no weight can drive out of float16's range:

    mean += (score - mean) · weight / Σ weight so far      (calculated in float32, kept in float16)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.tiling.stitch import PORTION, Stitcher

LARGEST = float(np.finfo(np.float16).max)


class Fp16Stitcher(Stitcher):
    """A Stitcher that holds two bytes a score. Scores beyond ±65504 are taken as that."""

    _kept_as = np.float16
    _needs_running_weights = True

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

    def _finished(self, first: int, last: int) -> Iterator[NDArray[np.float32]]:
        for start in range(first, last, PORTION):
            part = slice(start, min(start + PORTION, last))
            planes = self._sums[:, part].astype(np.float32)
            self._fill_background(planes, self._row[part])
            yield planes
