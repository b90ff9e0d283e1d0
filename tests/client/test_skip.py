"""Tiles in which nothing can be."""

from __future__ import annotations

import numpy as np

from voxtile.card import Tiling
from voxtile.tiling.plan import plan_tiles
from voxtile.tiling.skip import empty_tiles


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
