"""Strips against the whole: bit for bit the same sums, scores and labels, however a volume is cut."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.client.test_nnunet_export import CHAINS, as_card, case, plans, smooth_logits
from tests.support.memory_limits import held_bytes
from tests.support.phantoms import ORIENTATIONS, affine_of, card_of, phantom_volume
from voxtile.card import Card, Tiling
from voxtile.chains.monai import invert as restoring
from voxtile.chains.monai.grid import Grid, plan_grid
from voxtile.chains.monai.invert import Restorer, grid_strips, restore_bytes
from voxtile.chains.nnunet.exporting import LabelExporter, export_bytes, export_strips
from voxtile.chains.nnunet.preprocessing import preprocess
from voxtile.tiling.plan import TilePlan, plan_tiles
from voxtile.tiling.schedule import schedules
from voxtile.tiling.stitch import Stitcher
from voxtile.tiling.stitch_fp16 import Fp16Stitcher
from voxtile.tiling.strips import Strip, cut_axis, most_strips, sent_again, spans, tiles_of, whole

HALF_STEP = 2.0**-11
"""float16 rounds by at most this share of a number."""


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


sizes, edges = st.integers(1, 22), st.integers(1, 12)
tilings = st.builds(
    Tiling,
    semantics=st.sampled_from(("monai", "nnunet")),
    overlap=st.sampled_from((0.0, 0.25, 0.5, 0.7)),
    mode=st.sampled_from(("constant", "gaussian")),
)


# Stitching -------------------------------------------------------------------------------------------------


@given(
    st.tuples(sizes, sizes, sizes), st.tuples(edges, edges, edges), tilings, st.sampled_from((1, 2)),
    st.integers(1, 25), st.sampled_from((np.float32, np.float16, np.uint8)), st.sampled_from((0.0, 0.4)),
)  # fmt: skip
@settings(max_examples=120, deadline=None)
def test_sums_of_strips_are_those_of_the_whole_bit_for_bit(
    image: tuple[int, int, int],
    roi: tuple[int, int, int],
    tiling: Tiling,
    axis: int,
    count: int,
    dtype: Any,
    left_out: float,
) -> None:
    plan = plan_tiles(image, roi, tiling)
    if len(plan) > 400:
        return
    skipped = set(np.flatnonzero(np.random.default_rng(1).random(len(plan)) < left_out).tolist())
    background = np.array([7, -3], np.float32) if skipped else None
    for kind in (Stitcher, Fp16Stitcher):
        expected = stitched(kind(plan, 2, background), plan, plan, dtype, skipped)
        assert expected.shape == (2, *image)
        for strip in cut_plan(plan, axis, count):
            part = stitched(kind(plan, 2, background, strip), tiles_of(plan, strip), plan, dtype, skipped)
            np.testing.assert_array_equal(part, rows(expected, axis, strip.rows))


def test_strips_hold_less_the_narrower_they_are() -> None:
    plan = plan_tiles((60, 64, 40), (16, 16, 16), Tiling(overlap=0.25))
    held = [held_bytes(Stitcher(plan, 14, None, cut_plan(plan, 1, count)[0])) for count in (1, 2, 4, 8)]
    assert held == sorted(held, reverse=True)
    assert held[3] < held[0] / 5


# Restoring -------------------------------------------------------------------------------------------------


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


axes_mm = st.sampled_from((0.7, 1.0, 1.5, 2.0, 3.0))
kinds = st.sampled_from(
    (
        {"kind": "logits", "scores": 3},
        {"kind": "logits", "scores": 3, "activation": "softmax"},
        {"kind": "logits", "scores": 3, "activation": "sigmoid"},
        {"kind": "labels", "scores": 1},
    )
)


def restoring_card(output: dict[str, Any], **changes: Any) -> Card:
    count = 3 if output["kind"] == "labels" else output["scores"]
    labels = [{"name": str(value), "value": value} for value in range(count)]
    return card_of(output=output, labels=labels, regions=output.get("activation") == "sigmoid", **changes)


def random_scores(card: Card, grid: Grid) -> NDArray[np.float32]:
    rng, shape = np.random.default_rng(3), (card.output.scores, *grid.shape)
    values = rng.integers(0, 3, shape) if card.output.kind == "labels" else rng.normal(0, 1, shape)
    return values.astype(np.float32)


@given(
    st.tuples(*[st.integers(2, 14)] * 3), st.tuples(axes_mm, axes_mm, axes_mm), st.sampled_from(ORIENTATIONS),
    st.one_of(st.none(), st.tuples(axes_mm, axes_mm, axes_mm)), kinds, st.sampled_from((1, 2)), st.integers(1, 14),
    st.lists(st.integers(1, 5), min_size=1, max_size=3),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_labels_and_scores_of_strips_are_those_of_the_whole_bit_for_bit(
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    codes: str,
    target: tuple[float, float, float] | None,
    output: dict[str, Any],
    axis: int,
    count: int,
    portions: list[int],
) -> None:
    volume, card = phantom_volume(shape, spacing, codes), restoring_card(output, spacing=target)
    grid = plan_grid(volume.affine, volume.shape, card)
    scores = random_scores(card, grid)
    uncut, cut = (Restorer(grid, card, keep_scores=True, threads=1) for _ in range(2))
    uncut.add_planes(scores)
    strips = grid_strips(grid, card, axis, count)
    fed(cut, scores, strips, portions)
    np.testing.assert_array_equal(cut.finish(), uncut.finish())
    np.testing.assert_array_equal(cut.scores, uncut.scores)


@pytest.mark.parametrize("target", [None, (1.5, 1.5, 1.5), (0.6, 0.6, 0.6), (3.0, 0.6, 0.6), (0.6, 3.0, 1.0)])
@pytest.mark.parametrize("activation", ["none", "softmax"])
@pytest.mark.parametrize("axis", [1, 2])
def test_restoring_a_strip_takes_no_more_than_predicted(
    target: tuple[float, float, float] | None, activation: str, axis: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restoring, "SLAB_BYTES", 1 << 18)
    shape = (60, 90, 80)
    card = restoring_card({"kind": "logits", "scores": 3, "activation": activation}, spacing=target)
    grid = plan_grid(affine_of(shape), shape, card)
    strips = grid_strips(grid, card, axis, 4)
    planes = [np.zeros((3, 4, *strip.narrowed(grid.shape)[1:]), np.float32) for strip in strips]
    tracemalloc.start()
    restorer = Restorer(grid, card, threads=2)
    for strip, part in zip(strips, planes, strict=True):
        restorer.start_strip(strip)
        for first in range(0, grid.shape[0], 4):
            restorer.add_planes(part[:, : min(4, grid.shape[0] - first)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < max(restore_bytes(grid, card, 4, threads=2, strip=strip) for strip in strips)


def test_a_strip_is_to_be_finished_before_the_next() -> None:
    card = restoring_card({"kind": "logits", "scores": 3})
    grid = plan_grid(phantom_volume().affine, phantom_volume().shape, card)
    first, second = grid_strips(grid, card, 1, 2)
    restorer = Restorer(grid, card)
    restorer.start_strip(first)
    restorer.add_planes(np.zeros((3, 4, first.rows[1] - first.rows[0], grid.shape[2]), np.float32))
    with pytest.raises(ValueError, match="planes of scores, got 4"):
        restorer.start_strip(second)


@pytest.mark.parametrize("target", [None, (1.4, 2.2, 1.1), (2.6, 1.1, 2.9)])
@pytest.mark.parametrize("roi", [(8, 10, 12), (8, 12, 1), (40, 40, 40)])
@pytest.mark.parametrize("activation", ["none", "softmax"])
@pytest.mark.parametrize("count", [2, 3, 7])
def test_tiles_become_the_same_labels_in_strips_as_in_one_piece(
    target: tuple[float, float, float] | None, roi: tuple[int, int, int], activation: str, count: int
) -> None:
    """Stitching and restoring in turn, on a grid of the model's own, with slices, and with one tile for all."""
    volume = phantom_volume((15, 18, 16), codes="PIR")
    card = restoring_card({"kind": "logits", "scores": 2, "activation": activation}, spacing=target)
    grid = plan_grid(volume.affine, volume.shape, card)
    plan = plan_tiles(grid.shape, roi, Tiling(overlap=0.25))
    found = []
    for strips in (grid_strips(grid, card, 1, 1), grid_strips(grid, card, cut_axis(plan), count)):
        restorer = Restorer(grid, card, keep_scores=True)
        for strip in strips:
            restorer.start_strip(strip)
            restorer.add_planes(stitched(Stitcher(plan, 2, None, strip), tiles_of(plan, strip), plan, np.float32))
        found.append((restorer.finish(), restorer.scores))
    np.testing.assert_array_equal(found[1][0], found[0][0])
    np.testing.assert_array_equal(found[1][1], found[0][1])
    assert len(np.unique(found[0][0])) == 2


# nnU-Net ---------------------------------------------------------------------------------------------------


STREAMING = sorted(set(CHAINS) - {"cubic scores"})


@pytest.mark.parametrize("name", STREAMING)
@pytest.mark.parametrize("regions", [None, [1, 3, 2]])
def test_nnunets_labels_of_strips_are_those_of_the_whole_bit_for_bit(name: str, regions: list[int] | None) -> None:
    changes, spacing = CHAINS[name]
    plan = plans(**changes)
    card, heads = as_card(plan), 4 if regions is None else 3
    grid = preprocess(case((14, 75, 68), card.channels), spacing, card).properties
    logits = smooth_logits(grid.shape_after_resampling, heads)
    uncut = LabelExporter(grid, card, n_labels=4, regions_class_order=regions, threads=1)
    uncut.add_planes(logits)
    expected = uncut.finish()
    for axis, count in ((1, 2), (2, 2), (2, 99)):
        strips = export_strips(grid, card, axis, count)
        assert 1 < len(strips) <= count or grid.shape_after_cropping[axis] <= 32
        exporter = LabelExporter(grid, card, n_labels=4, regions_class_order=regions, threads=1)
        fed(exporter, logits, strips, (3, 5))
        np.testing.assert_array_equal(exporter.finish(), expected)


def test_a_plan_that_resamples_scores_by_order_three_is_not_cut() -> None:
    changes, spacing = CHAINS["cubic scores"]
    card = as_card(plans(**changes))
    grid = preprocess(case((14, 75, 68)), spacing, card).properties
    assert export_strips(grid, card, 1, 2) == (whole(grid.shape_after_resampling, grid.shape_after_cropping),)


@pytest.mark.parametrize("name", ["upsampled", "downsampled", "separate z", "cubic scores", "no resampling"])
@pytest.mark.parametrize("count", [1, 2])
def test_nnunets_export_takes_no_more_than_predicted(name: str, count: int) -> None:
    changes, spacing = CHAINS[name]
    card = as_card(plans(**changes))
    grid = preprocess(case((40, 75, 68)), spacing, card).properties
    strips = export_strips(grid, card, 1, count)
    planes = [np.zeros((9, 7, *strip.narrowed(grid.shape_after_resampling)[1:]), np.float32) for strip in strips]
    tracemalloc.start()
    exporter = LabelExporter(grid, card, n_labels=9, threads=1)
    for strip, part in zip(strips, planes, strict=True):
        exporter.start_strip(strip)
        for first in range(0, grid.shape_after_resampling[0], 7):
            exporter.add_planes(part[:, : min(7, grid.shape_after_resampling[0] - first)])
    labels = exporter.finish()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * labels.nbytes + max(export_bytes(grid, card, 9, strip) for strip in strips) + (1 << 20)


# Planning --------------------------------------------------------------------------------------------------


@given(st.integers(1, 500), st.integers(1, 60), st.sampled_from((1, 5, 32)))
def test_spans_cover_everything_once_in_nearly_equal_parts(total: int, count: int, step: int) -> None:
    found = spans(total, count, step)
    assert [row for first, last in found for row in range(first, last)] == list(range(total))
    assert len(found) == min(count, -(-total // step))
    assert all(first % step == 0 and last > first for first, last in found)
    lengths = [last - first for first, last in found[:-1]]
    assert max(lengths, default=0) - min(lengths, default=0) <= step


def test_the_longer_axis_is_cut_but_rather_the_one_that_slices_lie_along() -> None:
    assert cut_axis(plan_tiles((90, 40, 60), (16, 16, 16), Tiling())) == 2
    assert cut_axis(plan_tiles((90, 60, 60), (16, 16, 16), Tiling())) == 1
    slices = plan_tiles((90, 80, 60), (16, 16, 1), Tiling(overlap=0.5))
    assert cut_axis(slices) == 2
    assert sent_again(tiles_of(slices, strip) for strip in cut_plan(slices, 2, 7)) == 0


def test_tiles_on_a_cut_are_counted_as_sent_again() -> None:
    plan = plan_tiles((16, 64, 16), (16, 16, 16), Tiling(overlap=0.0))
    assert sent_again(tiles_of(plan, strip) for strip in cut_plan(plan, 1, 4)) == 0
    assert sent_again(tiles_of(plan, strip) for strip in cut_plan(plan, 1, 3)) == 2
    assert most_strips(plan, 1) == 16
    assert sent_again(tiles_of(plan, strip) for strip in cut_plan(plan, 1, 16)) == 12


def test_what_is_given_up_comes_in_order() -> None:
    plan = plan_tiles((32, 24, 8), (16, 16, 16), Tiling())

    def cut(axis: int, count: int) -> tuple[Strip, ...]:
        return tuple(cut_plan(plan, axis, min(count, 3)))

    found = list(schedules(4, 2, plan, cut))
    ladder = [(4, 2), (2, 2), (1, 2), (1, 1)]
    expected = [(half, count, *rung) for half in (False, True) for count in (1, 2, 3) for rung in ladder]
    assert [(one.half, len(one.strips), one.in_flight, one.batch) for one in found] == expected


def test_strips_stay_wide_enough() -> None:
    plan = plan_tiles((200, 100, 50), (40, 40, 40), Tiling())
    counts = [len(one.strips) for one in schedules(1, 1, plan, lambda axis, n: tuple(cut_plan(plan, axis, n)))]
    assert counts == 2 * list(range(1, 11))  # in single precision, then in half


# Half precision --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("semantics", ["monai", "nnunet"])
@pytest.mark.parametrize("overlap", [0.25, 0.5, 0.85])
def test_means_in_half_precision_stay_near_and_never_overflow(semantics: str, overlap: float) -> None:
    """Bytes weighed by nnU-Net's Gaussian: summed as they are, they would leave float16's range."""
    plan = plan_tiles((30, 20, 20), (12, 12, 12), Tiling(semantics=semantics, overlap=overlap))
    exact = stitched(Stitcher(plan, 2), plan, plan, np.uint8)
    near = stitched(Fp16Stitcher(plan, 2), plan, plan, np.uint8)
    each = max(len(starts) for starts in plan.starts)
    assert np.abs(near - exact).max() <= 8 * each * HALF_STEP * exact.max()


def test_scores_beyond_half_precision_are_taken_as_its_largest() -> None:
    plan = plan_tiles((4, 4, 4), (4, 4, 4), Tiling())
    stitcher = Fp16Stitcher(plan, 2)
    scores = np.stack([np.full(plan.roi, 1e30), np.full(plan.roi, -1e30)])
    list(stitcher.add(next(iter(plan)), scores.astype(np.float32)))
    planes = next(stitcher.finish())
    assert (planes[0] == 65504).all()
    assert (planes[1] == -65504).all()


def smooth_scores(plan: TilePlan, classes: int) -> Iterator[tuple[Any, NDArray[np.float32]]]:
    """Each tile with its part of smooth logits of a phantom, and a little of its own."""
    full = smooth_logits(plan.image, classes)
    for tile in plan:
        noise = np.random.default_rng(tile.index).normal(0, 0.2, (classes, *plan.roi))
        yield tile, (full[(slice(None), *tile.slices)] + noise).astype(np.float32)


def test_half_precision_flips_few_voxels_of_a_phantom() -> None:
    plan = plan_tiles((48, 48, 48), (24, 24, 24), Tiling(overlap=0.5))
    labels = []
    for kind in (Stitcher, Fp16Stitcher):
        stitcher = kind(plan, 5)
        planes = [part.argmax(0) for tile, scores in smooth_scores(plan, 5) for part in stitcher.add(tile, scores)]
        labels.append(np.concatenate([*planes, *(part.argmax(0) for part in stitcher.finish())]))
    changed = (labels[0] != labels[1]).mean()
    assert 0 < changed < 2e-3
