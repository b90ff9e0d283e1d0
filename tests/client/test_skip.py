"""Tiles in which nothing can be."""

from __future__ import annotations

import tracemalloc

import numpy as np

from voxtile.card import Tiling
from voxtile.tiling.plan import plan_tiles
from voxtile.tiling.skip import empty_tiles, empty_tiles_bytes


def test_a_tile_is_empty_when_half_a_roi_around_it_is() -> None:
    data = np.zeros((2, 40, 24, 24), np.int16)
    data[1, 20, 12, 12] = 5
    plan = plan_tiles(data.shape[1:], (8, 8, 8), Tiling(overlap=0.5))
    empty = empty_tiles(data, plan, [0.0, 4.0])
    for tile in plan:
        around = tuple(slice(max(start - 4, 0), start + 8 + 4) for start in tile.start)
        assert (tile.index in empty) == (not (data[1][around] > 4).any())
    assert 0 < len(empty) < len(plan)
    assert empty_tiles(data, plan, [0.0, 5.0]) == frozenset(range(len(plan)))
    assert not empty_tiles(data, plan, [-1.0, 5.0])


def test_a_tile_that_is_larger_than_the_scan_sees_all_of_it() -> None:
    """Each of its 5 planes counts for a tile of 12, wherever the padding is."""
    plan = plan_tiles((5, 30, 6), (12, 6, 6), Tiling(overlap=0.0))
    assert plan.before == (3, 0, 0)
    for plane in range(5):
        data = np.zeros((1, 5, 30, 6), np.uint8)
        data[0, plane, 29, 5] = 1
        assert empty_tiles(data, plan, 0) == {0, 1, 2, 3}  # the fourth sees rows 15 to 26


def test_half_a_roi_is_cut_off_to_voxels() -> None:
    data = np.zeros((1, 1, 1, 21), np.uint8)
    data[..., 14] = 1
    plan = plan_tiles((1, 1, 21), (1, 1, 7), Tiling(overlap=0.0))
    assert plan.starts[2] == (0, 7, 14)
    assert empty_tiles(data, plan, 0) == {0}
    data[...] = 0
    data[..., 10] = 1  # 4 behind the first tile's last voxel; 4 before the last tile's first
    assert empty_tiles(data, plan, 0) == {0, 2}
    data[..., 10], data[..., 9] = 0, 1
    assert empty_tiles(data, plan, 0) == {2}


def test_one_limit_counts_for_every_channel_and_is_itself_empty() -> None:
    plan = plan_tiles((2, 2, 2), (2, 2, 2), Tiling())
    for channel in (0, 1, 2):
        data = np.full((3, 2, 2, 2), 7.5, np.float32)
        assert empty_tiles(data, plan, 7.5) == {0}
        data[channel, 1, 0, 1] = 8
        assert empty_tiles(data, plan, 7.5) == frozenset()


def test_the_search_takes_no_more_memory_than_is_said() -> None:
    data = np.zeros((3, 60, 50, 40), np.int16)
    plan = plan_tiles(data.shape[1:], (32, 32, 32), Tiling())
    tracemalloc.start()
    try:
        empty_tiles(data, plan, 0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    said = empty_tiles_bytes(plan)
    assert said == 6 * 60 * 50 * 40
    assert 0.8 * said < peak <= said
