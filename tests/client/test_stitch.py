"""Stitching: bounded buffers, and the order of tiles. Sums are in test_stitch_sums.py and in the oracle."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.support.memory_limits import held_bytes
from voxtile.card import Tiling
from voxtile.tiling.plan import plan_tiles
from voxtile.tiling.stitch import PORTION, Stitcher, portion_voxels, scratch_shape, slab_shape
from voxtile.tiling.stitch_fp16 import Fp16Stitcher
from voxtile.tiling.strips import Strip


def test_planes_are_finished_as_soon_as_no_later_tile_reaches_them() -> None:
    plan = plan_tiles((64, 16, 16), (16, 16, 16), Tiling(overlap=0.5))
    stitcher = Stitcher(plan, 1)
    finished = [sum(p.shape[1] for p in stitcher.add(tile, np.ones((1, 16, 16, 16)))) for tile in plan]
    assert finished == [0, 8, 8, 8, 8, 8, 8]
    assert sum(p.shape[1] for p in stitcher.finish()) == 16


def test_buffers_do_not_grow_with_the_volume_along_the_first_axis() -> None:
    short, long = (plan_tiles((n, 32, 32), (16, 16, 16), Tiling()) for n in (20, 2000))
    assert held_bytes(Stitcher(short, 3)) == held_bytes(Stitcher(long, 3))


def test_a_tile_behind_finished_planes_is_refused() -> None:
    plan = plan_tiles((64, 16, 16), (16, 16, 16), Tiling(overlap=0.5))
    tiles = list(plan)
    stitcher = Stitcher(plan, 1)
    for tile in tiles[:3]:
        list(stitcher.add(tile, np.ones((1, 16, 16, 16))))
    with pytest.raises(ValueError, match="tiles come in order"):
        list(stitcher.add(tiles[0], np.ones((1, 16, 16, 16))))


def test_skipped_tiles_take_no_part_and_score_as_background() -> None:
    plan = plan_tiles((32, 8, 8), (8, 8, 8), Tiling(overlap=0.5))
    stitcher = Stitcher(plan, 2, np.float32([1, 0]))
    planes = []
    for tile in plan:
        skipped = tile.start[0] >= 16
        scores = np.stack([np.zeros(tile.shape), np.full(tile.shape, 5.0)])
        planes += [p.copy() for p in (stitcher.skip(tile) if skipped else stitcher.add(tile, scores))]
    planes += [p.copy() for p in stitcher.finish()]
    result = np.concatenate(planes, axis=1)
    np.testing.assert_allclose(result[1, :20], 5.0, rtol=1e-6)
    np.testing.assert_array_equal(result[0, 20:], 1)
    np.testing.assert_array_equal(result[1, 20:], 0)


def test_stitching_halves_is_stitching_what_they_stand_for() -> None:
    plan = plan_tiles((20, 17, 30), (8, 16, 12), Tiling(overlap=0.25, mode="gaussian"))
    rng = np.random.default_rng(3)
    tiles = [rng.normal(0, 30, (3, *plan.roi)).astype(np.float16) for _ in plan]
    stitched = []
    for kind in (np.float16, np.float32):
        stitcher = Stitcher(plan, 3)
        parts = [part.copy() for tile, scores in zip(plan, tiles, strict=True)
                 for part in stitcher.add(tile, scores.astype(kind))]  # fmt: skip
        stitched.append(np.concatenate([*parts, *(part.copy() for part in stitcher.finish())], axis=1))
    np.testing.assert_array_equal(*stitched)


@pytest.mark.parametrize("strip", [None, Strip(1, (5, 12), (5, 12)), Strip(2, (0, 9), (0, 9))])
@pytest.mark.parametrize("shape", [(40, 50, 30), (10, 12, 30)])
def test_buffers_of_stitching_are_as_predicted(strip: Strip | None, shape: tuple[int, int, int]) -> None:
    plan = plan_tiles(shape, (16, 16, 16), Tiling(overlap=0.5))
    slab = slab_shape(plan, strip)
    divisors = 4 * PORTION * math.prod(slab[1:])
    assert held_bytes(Stitcher(plan, 5, None, strip)) + divisors == Stitcher.predicted_bytes(plan, 5, strip)
    # Beside what it holds: each weight's share once more, and five channels of the finished planes, widened.
    more = 4 * (math.prod(slab_shape(plan, strip)) + math.prod(scratch_shape(plan, strip)) + 5 * portion_voxels(slab))
    assert held_bytes(Fp16Stitcher(plan, 5, None, strip)) + more == Fp16Stitcher.predicted_bytes(plan, 5, strip)
    assert Fp16Stitcher.predicted_bytes(plan, 14, strip) < Stitcher.predicted_bytes(plan, 14, strip)


@pytest.mark.parametrize("kind", [Stitcher, Fp16Stitcher])
def test_no_more_planes_come_at_once_than_is_said(kind: type[Stitcher]) -> None:
    plan = plan_tiles((23, 8, 9), (7, 5, 4), Tiling(overlap=0.0))
    stitcher, counts = kind(plan, 1), []
    for tile in plan:
        counts += [planes.shape[1] for planes in stitcher.add(tile, np.ones((1, *plan.roi), np.float32))]
    counts += [planes.shape[1] for planes in stitcher.finish()]
    assert max(counts) == kind.planes_at_once(plan)
    assert sum(counts) == 23


def test_a_slab_of_one_plane_is_finished_by_itself() -> None:
    assert portion_voxels((1, 4, 5)) == 20
    assert portion_voxels((9, 4, 5)) == PORTION * 20
