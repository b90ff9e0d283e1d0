"""The sums of one small scan, in process: cut, apply any function in place of the network, stitch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.tiling.plan import TilePlan
from voxtile.tiling.stitch import Stitcher


def padded_scan(scan: NDArray[np.float32], plan: TilePlan) -> NDArray[np.float32]:
    pads = [(b, p - b - n) for b, p, n in zip(plan.before, plan.padded, plan.image, strict=True)]
    return np.pad(scan, [(0, 0), *pads])


def stitch(
    scan: NDArray[np.float32], plan: TilePlan, network: Callable[[Any], Any] = lambda x: x
) -> NDArray[np.float32]:
    """The whole path in process: cut, apply `network` [channel, *roi] -> [score, *roi], stitch."""
    padded = padded_scan(scan, plan)
    channels = len(network(padded[(slice(None), *next(iter(plan)).slices)]))
    stitcher = Stitcher(plan, channels)
    planes = []
    for tile in plan:
        planes += [p.copy() for p in stitcher.add(tile, network(padded[(slice(None), *tile.slices)]))]
    planes += [p.copy() for p in stitcher.finish()]
    return np.concatenate(planes, axis=1)
