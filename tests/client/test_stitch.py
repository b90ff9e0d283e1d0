"""Stitching: bounded buffers, and the order of tiles. Sums are in test_stitch_sums.py and in the oracle."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from tests.support.memory_limits import held_bytes
from voxtile.card import Tiling
from voxtile.tiling.plan import plan_tiles
from voxtile.tiling.stitch import PORTION, Stitcher, portion_voxels, scratch_shape
from voxtile.tiling.stitch_fp16 import Fp16Stitcher
from voxtile.tiling.strips import Strip, tiles_of

OBJECTS = 50_000
"""Bytes of everything that is no large array: views, the buffers of conversions."""


def test_planes_are_finished_as_soon_as_no_later_tile_reaches_them() -> None:
    plan = plan_tiles((64, 16, 16), (16, 16, 16), Tiling(overlap=0.5))
    stitcher = Stitcher(plan, 1)
    finished = [sum(p.shape[1] for p in stitcher.add(tile, np.ones((1, 16, 16, 16)))) for tile in plan]
    assert finished == [0, 8, 8, 8, 8, 8, 8]
    assert sum(p.shape[1] for p in stitcher.finish()) == 16


def test_buffers_do_not_grow_with_the_volume_along_the_first_axis() -> None:
    short, long = (plan_tiles((n, 32, 32), (16, 16, 16), Tiling()) for n in (20, 2000))
    assert held_bytes(Stitcher(short, 3)) == held_bytes(Stitcher(long, 3))


@pytest.mark.parametrize("order", [(0, 1, 2, 0), (0, 3), (2,)])
def test_tiles_out_of_order_are_refused(order: tuple[int, ...]) -> None:
    """One behind finished planes, and two that leave planes without a tile."""
    plan = plan_tiles((64, 16, 16), (16, 16, 16), Tiling(overlap=0.25))
    tiles = list(plan)
    stitcher = Stitcher(plan, 1)
    for index in order[:-1]:
        list(stitcher.add(tiles[index], np.ones((1, 16, 16, 16))))
    with pytest.raises(ValueError, match="tiles come in order"):
        list(stitcher.add(tiles[order[-1]], np.ones((1, 16, 16, 16))))


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


def test_products_are_worked_on_in_a_quarter_of_a_mebibyte() -> None:
    """A plane of 96 x 96 scores takes 36 KiB, of which 7 fit; one that exceeds it is taken by itself."""
    plan = plan_tiles((200, 200, 200), (96, 96, 96), Tiling())
    assert scratch_shape(plan) == (7, 96, 96)
    assert scratch_shape(plan, Strip(1, (50, 62), (50, 62))) == (56, 12, 96)
    assert scratch_shape(plan, Strip(2, (50, 51), (50, 51))) == (96, 96, 1)
    assert scratch_shape(plan_tiles((9, 300, 300), (8, 300, 300), Tiling())) == (1, 300, 300)


STRIPS = [None, Strip(1, (60, 110), (60, 110)), Strip(2, (0, 90), (0, 90))]


@pytest.mark.parametrize("strip", STRIPS)
@pytest.mark.parametrize("kind", [Stitcher, Fp16Stitcher])
@pytest.mark.parametrize(("channels", "side"), [(1, 128), (3, 100), (14, 48)])
def test_stitching_takes_what_is_predicted(kind: type[Stitcher], strip: Strip | None, channels: int, side: int) -> None:
    plan = plan_tiles((11, 150, 120), (8, side, 60), Tiling(overlap=0.25))
    scores, tiles = np.ones((channels, *plan.roi), np.float32), list(plan) if strip is None else tiles_of(plan, strip)
    assert plan.weights.nbytes == 4 * scores[0].size  # kept from now on, and no part of this
    tracemalloc.start()
    try:
        stitcher = kind(plan, channels, None, strip)
        for tile in tiles:
            for planes in stitcher.add(tile, scores):  # noqa: B007
                pass
        for planes in stitcher.finish():
            assert planes.dtype == np.float32
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    predicted = kind.predicted_bytes(plan, channels, strip)
    assert 0.9 * predicted < peak < 1.001 * predicted + OBJECTS


def test_half_precision_takes_less() -> None:
    plan = plan_tiles((10, 12, 30), (16, 16, 16), Tiling(overlap=0.5))
    for strip in (None, Strip(1, (5, 12), (5, 12)), Strip(2, (0, 9), (0, 9))):
        assert Fp16Stitcher.predicted_bytes(plan, 14, strip) < Stitcher.predicted_bytes(plan, 14, strip)


def test_memory_of_a_plane_and_of_its_strips_by_hand() -> None:
    """Tiles of 8 planes of 300 x 300; a plane exceeds what is worked on at a time, one of 10 rows does not."""
    plan = plan_tiles((8, 300, 300), (8, 300, 300), Tiling())
    plane, strip = 300 * 300, 10 * 300
    rows = Strip(1, (0, 10), (0, 10))
    assert Stitcher.predicted_bytes(plan, 2) == 4 * ((2 + 1) * 8 * plane + plane + 2 * plane)
    assert Stitcher.predicted_bytes(plan, 2, rows) == 4 * ((2 + 1) * 8 * strip + 8 * strip + 2 * strip)
    divisors = 4 * 2 * strip
    assert held_bytes(Stitcher(plan, 2, None, rows)) + divisors == Stitcher.predicted_bytes(plan, 2, rows)
    assert Fp16Stitcher.predicted_bytes(plan, 2) == (2 * 2 + 4) * 8 * plane + 4 * (plane + 2 * (2 * 2 * plane))
    assert Fp16Stitcher.predicted_bytes(plan, 2, rows) == (2 * 2 + 4) * 8 * strip + 4 * (2 * 8 * strip + 2 * 2 * strip)
