"""Positions of tiles: they cover the volume, in C order. Equality is in the oracle."""

from __future__ import annotations

import itertools
from typing import get_args

import numpy as np
import pytest

from tests.support.phantoms import card_of
from voxtile.card import Semantics, Tiling
from voxtile.tiling.plan import plan_tiles, tile_shape
from voxtile.tiling.rules.all import RULES
from voxtile.tiling.rules.monai import monai_starts

OVERLAPS = [0.0, 0.1, 0.25, 0.5, 0.6, 0.8, 0.9, 0.99]


def test_the_interval_is_cut_off_in_floating_point() -> None:
    assert monai_starts(300, 100, 0.9)[1] == 9


@pytest.mark.parametrize("semantics", RULES)
@pytest.mark.parametrize("overlap", OVERLAPS[:-1])
@pytest.mark.parametrize(("image", "roi"), [((17, 5, 30), (8, 8, 8)), ((9, 40), (1, 16)), ((3, 3, 3), (4, 3, 2))])
def test_tiles_cover_the_padded_volume(
    semantics: str, overlap: float, image: tuple[int, ...], roi: tuple[int, ...]
) -> None:
    plan = plan_tiles(image, roi, Tiling(semantics=semantics, overlap=overlap))
    seen = np.zeros(plan.padded, int)
    for tile in plan:
        assert seen[tile.slices].shape == roi
        seen[tile.slices] += 1
    assert seen.min() >= 1


def test_tiles_come_in_c_order_and_are_numbered() -> None:
    plan = plan_tiles((40, 30, 20), (16, 16, 16), Tiling(overlap=0.5))
    tiles = list(plan)
    assert [tile.index for tile in tiles] == list(range(len(plan)))
    assert [tile.start for tile in tiles] == list(itertools.product(*plan.starts))


def test_padding_puts_the_odd_voxel_behind() -> None:
    plan = plan_tiles((5, 20, 7), (8, 8, 8), Tiling())
    assert plan.padded == (8, 20, 8)
    assert plan.before == (1, 0, 0)


def test_two_dimensional_tiles_take_every_slice() -> None:
    for semantics in RULES:
        plan = plan_tiles((6, 20, 20), (1, 16, 16), Tiling(semantics=semantics, overlap=0.5))
        assert plan.starts[0] == tuple(range(6))


def test_every_semantics_of_a_card_has_its_rule() -> None:
    assert set(RULES) == set(get_args(Semantics))


def test_tiles_have_the_shape_that_the_card_names() -> None:
    assert tile_shape(card_of(roi_size=(16, 12, 8)), (5, 100, 9)) == (16, 12, 8)


@pytest.mark.parametrize(("axis", "tile"), [(0, (1, 16, 12)), (1, (16, 1, 12)), (2, (16, 12, 1))])
def test_tiles_of_a_2d_network_are_one_slice_thick(axis: int, tile: tuple[int, int, int]) -> None:
    assert tile_shape(card_of(roi_size=(16, 12), slice_axis=axis), (5, 100, 9)) == tile


@pytest.mark.parametrize(("axis", "tile"), [(0, (1, 48, 64)), (1, (32, 1, 64)), (2, (32, 48, 1))])
def test_a_tile_is_a_whole_slice_where_the_network_takes_any_size(axis: int, tile: tuple[int, int, int]) -> None:
    card = card_of(roi_size=(32, 32), slice_axis=axis, multiple=16)
    assert tile_shape(card, (32, 33, 50)) == tile
