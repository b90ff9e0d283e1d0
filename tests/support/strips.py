"""Strips of a volume, and everything that is fed to a sink or a stitcher a strip at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.tiling.plan import TilePlan
from voxtile.tiling.stitch import Stitcher
from voxtile.tiling.strips import Strip, spans


def cut_plan(plan: TilePlan, axis: int, count: int) -> list[Strip]:
    return [Strip(axis, part, part) for part in spans(plan.image[axis], count)]


def scores_of(index: int, channels: int, plan: TilePlan, dtype: Any) -> NDArray[Any]:
    """What a network says of one tile: nothing that a neighbour says of the same voxels."""
    values = np.random.default_rng(index).normal(0, 20, (channels, *plan.roi))
    return (np.abs(values) if np.dtype(dtype).kind == "u" else values).astype(dtype)


def stitched(stitcher: Stitcher, tiles: Any, plan: TilePlan, dtype: Any, skipped: Any = ()) -> NDArray[np.float32]:
    """[2, *strip] what is handed on in all; every portion is copied before the next one overwrites it."""
    planes: list[NDArray[np.float32]] = []
    for tile in tiles:
        done = (
            stitcher.skip(tile) if tile.index in skipped else stitcher.add(tile, scores_of(tile.index, 2, plan, dtype))
        )
        planes += [part.copy() for part in done]
    planes += [part.copy() for part in stitcher.finish()]
    return np.concatenate(planes, axis=1)


def rows(values: NDArray[Any], axis: int, span: tuple[int, int]) -> NDArray[Any]:
    return values[tuple(slice(*span) if a == axis + 1 else slice(None) for a in range(values.ndim))]


def fed(restorer: Any, scores: NDArray[Any], strips: Sequence[Strip], portions: Sequence[int]) -> None:
    """All of `scores` [score, x, y, z], a strip at a time, from buffers that are overwritten."""
    for strip in strips:
        restorer.start_strip(strip)
        part, first, turn = rows(scores, strip.axis, strip.rows), 0, 0
        while first < part.shape[1]:
            planes = part[:, first : first + portions[turn % len(portions)]].astype(np.float32)
            restorer.add_planes(planes)
            first, turn = first + planes.shape[1], turn + 1
            planes.fill(np.nan)
