"""The client's own path from a prepared scan to stitched scores, with any function in place of the server."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from voxtile.card import Tiling
from voxtile.tiling.extract import Cutter, tile_batches, tile_scores, tta_flips
from voxtile.tiling.plan import plan_tiles
from voxtile.tiling.stitch import Stitcher

Network = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def stitched(
    scan: NDArray[np.float32],
    roi: Sequence[int],
    tiling: Tiling,
    network: Network,
    *,
    batch: int = 3,
    cval: float = 0.0,
    mirror_axes: Sequence[int] = (),
    slice_axis: int | None = None,
) -> NDArray[np.float32]:
    """Scores [score, *grid] of `scan` [channel, *grid]; `network` takes [batch, channel, *roi], at most `batch`.

    slice_axis: the axis of `roi` that has one voxel and that a 2D network does not see.
    """
    plan = plan_tiles(scan.shape[1:], roi, tiling)
    cutter = Cutter(scan, plan, np.asarray, cval, slice_axis)
    flips = tta_flips(mirror_axes)
    answers = (network(made.values) for made in tile_batches(iter(plan), cutter, flips, batch))
    stitcher: Stitcher | None = None
    planes: list[NDArray[np.float32]] = []
    for tile, scores in zip(plan, tile_scores(answers, flips, slice_axis), strict=True):
        stitcher = stitcher or Stitcher(plan, len(scores))
        planes += [one.copy() for one in stitcher.add(tile, scores)]
    assert stitcher is not None
    planes += [one.copy() for one in stitcher.finish()]
    return np.concatenate(planes, axis=1)
