"""Cutting tiles and averaging their scores: padding marks, flips as nnU-Net makes them, batches."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.phantoms import card_of
from voxtile.card import Tiling
from voxtile.tiling.extract import Cutter, tile_batches, tile_bytes, tile_scores, tta_flips
from voxtile.tiling.plan import plan_tiles

PADDING = -32768.0


def cutter(data: NDArray[np.int16], roi: tuple[int, int, int], slice_axis: int | None = None) -> Cutter:
    plan = plan_tiles(data.shape[1:], roi, Tiling(overlap=0.5))
    return Cutter(data, plan, lambda values: values, PADDING, slice_axis)


def test_tiles_hold_the_scan_and_the_mark_outside() -> None:
    data = np.random.default_rng(1).integers(-100, 100, (2, 5, 20, 7)).astype(np.int16)
    cut = cutter(data, (8, 8, 8))
    padded = np.pad(data, [(0, 0), (1, 2), (0, 0), (0, 1)], constant_values=int(PADDING))
    for tile in cut.plan:
        np.testing.assert_array_equal(cut.cut(tile), padded[(slice(None), *tile.slices)])


@pytest.mark.parametrize(("slice_axis", "roi"), [(0, (1, 8, 6)), (1, (3, 1, 6)), (2, (3, 8, 1))])
def test_tiles_of_a_2d_network_lose_their_slice_axis(slice_axis: int, roi: tuple[int, int, int]) -> None:
    data = np.arange(2 * 3 * 8 * 6, dtype=np.int16).reshape(2, 3, 8, 6)
    cut = cutter(data, roi, slice_axis)
    np.testing.assert_array_equal(np.stack([cut.cut(tile) for tile in cut.plan], axis=1 + slice_axis), data)


def test_mirrorings_are_all_of_them_in_nnunets_order() -> None:
    assert tta_flips(()) == ((),)
    assert tta_flips((0, 1, 2)) == ((), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2))
    axes = (0, 2)
    nnunet = [c for i in range(len(axes)) for c in itertools.combinations(axes, i + 1)]
    assert list(tta_flips(axes)[1:]) == nnunet


@pytest.mark.parametrize("batch", [1, 3, 4, 100])
@pytest.mark.parametrize("axes", [(), (1,), (0, 1, 2)])
def test_mirrored_answers_are_averaged_where_they_belong(batch: int, axes: tuple[int, ...]) -> None:
    data = np.random.default_rng(2).normal(size=(1, 12, 9, 10)).astype(np.float32)
    ramp = np.linspace(0, 1, 8 * 8 * 8, dtype=np.float32).reshape(8, 8, 8)
    cut = Cutter(data, plan_tiles(data.shape[1:], (8, 8, 8), Tiling(overlap=0.5)), lambda v: v, 0.0)
    flips = tta_flips(axes)

    def network(x: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.concatenate([x * ramp, np.tanh(x) + ramp], axis=1)

    made = list(tile_batches(iter(cut.plan), cut, flips, batch))
    assert [one.index for one in made] == list(range(len(made)))
    assert all(len(one.values) == batch for one in made[:-1])
    assert 0 < len(made[-1].values) <= batch
    found = list(tile_scores((network(one.values) for one in made), flips))
    for tile, scores in zip(cut.plan, found, strict=True):
        x = cut.cut(tile)[None]
        expected = network(x)
        for flip in flips[1:]:
            spatial = tuple(2 + axis for axis in flip)
            expected = expected + np.flip(network(np.flip(x, spatial)), spatial)
        np.testing.assert_allclose(scores, expected[0] / len(flips), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("slice_axis", [0, 1, 2])
def test_scores_of_a_2d_network_get_their_slice_axis_back(slice_axis: int) -> None:
    scores = np.arange(2 * 3 * 4, dtype=np.float32).reshape(1, 2, 3, 4)
    [found] = tile_scores(iter([scores]), ((),), slice_axis)
    shape = [2, 3, 4]
    shape.insert(1 + slice_axis, 1)
    assert found.shape == tuple(shape)
    np.testing.assert_array_equal(found.squeeze(1 + slice_axis), scores[0])


def test_scores_of_one_pass_stay_as_they_came() -> None:
    scores = np.ones((1, 2, 3, 4, 5), np.float16)
    [found] = tile_scores(iter([scores]), tta_flips(()))
    assert found.dtype == np.float16
    [found] = tile_scores(iter([np.repeat(scores, 2, axis=0)]), tta_flips((0,)))
    assert found.dtype == np.float32


def test_the_scan_is_encoded_and_the_mark_outside_is_not() -> None:
    data = np.full((2, 2, 4, 4), 3, np.int16)
    plan = plan_tiles(data.shape[1:], (4, 4, 4), Tiling())
    [tile] = plan
    found = Cutter(data, plan, lambda values: (values * 2).astype(np.float32), -1.0).cut(tile)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[0, :, 0, 0], [-1, 6, 6, -1])


def test_bytes_of_a_tile_are_those_of_its_channels_and_of_its_scores() -> None:
    plan = plan_tiles((9, 9, 9), (2, 3, 4), Tiling())
    card = card_of(
        input={"dtype": "int16", "padding": -32768.0}, output={"kind": "logits", "dtype": "fp32", "scores": 2}
    )
    assert tile_bytes(plan, card, 3) == 24 * (3 * 2 + 2 * 4)
