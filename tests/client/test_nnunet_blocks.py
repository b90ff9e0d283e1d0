"""Blocks of labels against the argmax, or the threshold, of all classes on the whole grid; and what a block costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.strips import rows as strip_rows
from voxtile.chains.nnunet import block_argmax
from voxtile.chains.nnunet.axis_zoom import AxisZoom, Scratch
from voxtile.chains.nnunet.block_argmax import REGION_LOGIT, BlockLabels, Heads, candidates
from voxtile.tiling.strips import Strip, whole

Shape = tuple[int, int, int]


def random_logits(shape: Shape, classes: int, seed: int = 0) -> NDArray[np.float32]:
    """Compact winners: each class leads where nothing else does."""
    random = np.random.default_rng(seed)
    coarse = random.normal(0, 9, (classes, *(-(-size // 5) for size in shape)))
    full = coarse.repeat(5, 1).repeat(5, 2).repeat(5, 3)[:, : shape[0], : shape[1], : shape[2]]
    return (full + random.normal(0, 1, (classes, *shape))).astype(np.float32)


def zooms_of(shape: Shape, new_shape: Shape, orders: Any) -> tuple[AxisZoom | None, ...]:
    return tuple(
        None if old == new else AxisZoom(old, new, order)
        for old, new, order in zip(shape, new_shape, orders, strict=True)
    )


def zoomed(logits: NDArray[Any], zooms: Any) -> NDArray[np.float64]:
    """All classes on the whole output grid, in float64."""
    values = logits.astype(float)
    for axis, zoom in enumerate(zooms, 1):
        if zoom is not None:
            matrix = np.zeros((zoom.n_out, zoom.n_in))
            np.add.at(matrix, (np.arange(zoom.n_out)[:, None], zoom.columns), zoom.weights)
            values = np.moveaxis(np.tensordot(matrix, values, (1, axis)), 0, axis)
    return values


def labelled(
    logits: NDArray[Any], zooms: Any, new_shape: Shape, heads: Heads, strips: Any = None, threads: int = 1
) -> NDArray[np.uint8]:
    """The labels of all strips, seven output planes at a time."""
    blocks = BlockLabels(zooms, new_shape, heads)
    out = np.full(new_shape, 99, np.uint8)
    for strip in strips or [whole(logits.shape[1:], new_shape)]:
        narrow = strip_rows(logits, strip.axis, strip.rows)
        for start in range(0, new_shape[0], 7):
            stop = min(start + 7, new_shape[0])
            blocks.fill((start, stop), narrow[:, blocks.reads(0, start, stop)], out[start:stop], threads, strip)
    return out


GRIDS: list[tuple[Shape, Shape, Any]] = [
    ((8, 21, 23), (15, 45, 70), (1, 1, 1)),
    ((8, 41, 43), (5, 34, 37), (1, 1, 1)),
    ((8, 21, 40), (15, 45, 40), (0, 1, 1)),
    ((8, 40, 23), (8, 40, 70), (1, 1, 1)),
    ((8, 40, 37), (15, 40, 37), (1, 1, 1)),
    ((8, 21, 23), (15, 45, 70), (1, 0, 0)),
    ((8, 41, 43), (8, 41, 43), (1, 1, 1)),
]


@pytest.mark.parametrize(("shape", "new_shape", "orders"), GRIDS)
@pytest.mark.parametrize("threads", [1, 2])
def test_the_highest_interpolated_score_wins(shape: Shape, new_shape: Shape, orders: Any, threads: int) -> None:
    logits, zooms = random_logits(shape, 6), zooms_of(shape, new_shape, orders)
    scores = zoomed(logits, zooms)
    found = labelled(logits, zooms, new_shape, Heads(6), threads=threads)
    clear = np.ptp(np.sort(scores, 0)[-2:], 0) > 1e-4
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(found[clear], scores.argmax(0)[clear])
    assert len(np.unique(found)) == 6


@pytest.mark.parametrize(("shape", "new_shape", "orders"), GRIDS)
def test_later_regions_lie_over_earlier_ones(shape: Shape, new_shape: Shape, orders: Any) -> None:
    logits, zooms = random_logits(shape, 3) - 2, zooms_of(shape, new_shape, orders)
    logits[1] -= 40  # a region that is nowhere
    scores, expected = zoomed(logits, zooms), np.zeros(new_shape, np.uint8)
    for score, label in zip(scores, (5, 4, 2), strict=True):
        expected[score > 0] = label
    found = labelled(logits, zooms, new_shape, Heads(3, (5, 4, 2)))
    clear = (np.abs(scores) > 1e-4).all(0)
    np.testing.assert_array_equal(found[clear], expected[clear])
    assert set(np.unique(found)) == {0, 2, 5}
    everywhere = labelled(np.abs(logits) + 1, zooms, new_shape, Heads(3, (5, 4, 2)))
    np.testing.assert_array_equal(everywhere, 2)


@pytest.mark.parametrize("offset", [-1, 0, 1])
@pytest.mark.parametrize("zooms", [(None, None, None), (None, None, AxisZoom(3, 5, 1))])
def test_a_region_begins_above_the_logit_whose_sigmoid_exceeds_one_half(offset: int, zooms: Any) -> None:
    logit = np.float32(REGION_LOGIT)
    logit = np.nextafter(logit, np.float32(offset)) if offset else logit
    found = labelled(np.full((1, 2, 2, 3), logit), zooms, (2, 2, 5 if zooms[2] else 3), Heads(1, (7,)))
    np.testing.assert_array_equal(found, 7 if offset > 0 else 0)
    assert REGION_LOGIT == 1.5 * 2.0**-24


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize(("shape", "new_shape", "orders"), GRIDS)
@pytest.mark.parametrize("heads", [Heads(4), Heads(4, (4, 1, 3, 2))])
def test_strips_get_the_labels_of_all(axis: int, shape: Shape, new_shape: Shape, orders: Any, heads: Heads) -> None:
    logits, zooms = random_logits(shape, 4), zooms_of(shape, new_shape, orders)
    blocks, strips = BlockLabels(zooms, new_shape, heads), []
    for first, last in ((0, 32), (32, new_shape[axis])):
        reads = blocks.reads(axis, first, last)
        strips.append(Strip(axis, (reads.start, reads.stop), (first, last)))
    expected = labelled(logits, zooms, new_shape, heads)
    np.testing.assert_array_equal(labelled(logits, zooms, new_shape, heads, strips), expected)


def test_rows_that_are_read_are_those_that_output_rows_depend_on() -> None:
    blocks = BlockLabels((None, AxisZoom(10, 20, 1), AxisZoom(10, 5, 0)), (4, 20, 5), Heads(1))
    assert blocks.reads(0, 1, 3) == slice(1, 3)
    assert blocks.reads(1, 3, 5) == slice(1, 3)  # at 1.25 and 1.75
    assert blocks.reads(2, 1, 3) == slice(3, 6)  # the nearest to 2.5 and 4.5


def test_blocks_of_a_strip_are_those_of_the_whole() -> None:
    blocks = BlockLabels((None, None, None), (4, 70, 100), Heads(1))
    assert list(blocks.spans(1, whole((4, 70, 100), (4, 70, 100)))) == [(0, 32), (32, 64), (64, 70)]
    assert list(blocks.spans(2, Strip(2, (0, 9), (64, 100)))) == [(64, 96), (96, 100)]
    assert list(blocks.spans(1, Strip(2, (0, 9), (64, 100)))) == [(0, 32), (32, 64), (64, 70)]


def highest(block: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(block.reshape(len(block), -1).max(1))


def block_of(*classes: Any) -> NDArray[np.float32]:
    """A block [class, 1, 1, n]."""
    return np.array(classes, np.float32)[:, None, None, :]


def test_a_class_below_what_another_is_certain_of_is_left_out() -> None:
    block = block_of([1, 5], [0.9, 0.9], [1.1, 0])
    np.testing.assert_array_equal(candidates(highest(block), block), [0, 2])


def test_classes_that_take_turns_leave_out_what_lies_below_their_mean() -> None:
    """Neither of two is certain of anything, but their mean never falls below 4; of three, below 3."""
    block = block_of([9, -1], [-1, 9], [3.9, 3.9], [4.1, 4.1])
    assert set(candidates(highest(block), block)) == {0, 1, 3}
    turns = block_of([9, 0, 0], [0, 9, 0], [0, 0, 9], [2.9, 2.9, 2.9], [3.1, 3.1, 3.1])
    assert set(candidates(highest(turns), turns)) == {0, 1, 2, 4}


def test_a_class_that_may_be_level_but_for_rounding_is_kept() -> None:
    for lead in (100.0, 1e-6, -100.0):
        level = np.nextafter(np.float32(lead), np.float32(-1e9))
        block = block_of([lead, lead], [level, level], [lead - abs(lead) * 1e-3] * 2)
        np.testing.assert_array_equal(candidates(highest(block), block), [0, 1])
    zero = block_of([0, 0], [0, 0], [-1e-20, -1e-20])
    np.testing.assert_array_equal(candidates(highest(zero), zero), [0, 1])


def test_the_margin_is_a_hundred_thousandth_of_the_largest_score_and_of_the_bound() -> None:
    """A class of 1000 that falls to 1 somewhere: its rounding there is that of 1000."""
    block = block_of([1000, 1], [1 - 0.009, 1 - 0.009], [1 - 0.011, 1 - 0.011])
    np.testing.assert_array_equal(candidates(highest(block), block), [0, 1])
    deep = block_of([-1000, -1000], [-1000.009, -1000.009], [-1000.011, -1000.011])
    np.testing.assert_array_equal(candidates(highest(deep), deep), [0, 1])


def test_a_score_that_is_not_a_number_leaves_out_nothing() -> None:
    block = block_of([1, 1], [np.nan, 0], [-5, -5])
    assert 1 in candidates(highest(block), block)


def test_no_more_than_six_classes_are_combined() -> None:
    turns = np.full((9, 1, 1, 9), -1, np.float32)
    for index in range(9):
        turns[index, 0, 0, index] = 26 - index
    turns = np.concatenate([turns, np.zeros((1, 1, 1, 9), np.float32)])
    assert len(candidates(highest(turns), turns)) == 10  # six of nine leave three places uncovered
    six = np.concatenate([turns[:6, ..., :6], np.zeros((1, 1, 1, 6), np.float32)])
    assert list(candidates(highest(six), six)) == [0, 1, 2, 3, 4, 5]


def test_classes_are_resampled_only_where_they_can_win(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    first_axis = block_argmax.zoom_first_axis

    def noted(block: Any, *rest: Any) -> Any:
        seen.append(float(block.max()))
        assert rest[-1].dtype == np.float32, "half the work of float64"
        return first_axis(block, *rest)

    monkeypatch.setattr(block_argmax, "zoom_first_axis", noted)
    logits, zooms = np.zeros((4, 3, 3, 3), np.float32), (AxisZoom(3, 5, 1), None, None)
    logits[1], logits[2], logits[2, 1], logits[3] = 5, 1, 8, 2.9
    labelled(logits, zooms, (5, 3, 3), Heads(4))
    assert seen == [5, 8]
    seen.clear()
    logits[2] = 1
    np.testing.assert_array_equal(labelled(logits, zooms, (5, 3, 3), Heads(4)), 1)
    assert not seen, "the only candidate needs no score"
    regions = np.stack([logits[0], logits[0] + 1, logits[0], -logits[1]])
    regions[2, 0] = 2
    labelled(regions, zooms, (5, 3, 3), Heads(4, (1, 2, 3, 4)))
    assert seen == [2], "of regions, only that with a border"


def test_a_block_holds_one_intermediate_of_each_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    """New memory for every class costs more than the products in it."""
    seen = []

    class Noted(Scratch):
        def array(self, name: str, *shape: int) -> NDArray[Any]:
            seen.append((name, shape))
            return super().array(name, *shape)

    monkeypatch.setattr(block_argmax, "Scratch", Noted)
    logits, zooms = random_logits((8, 5, 9), 3), (AxisZoom(8, 13, 1), AxisZoom(5, 11, 1), AxisZoom(9, 7, 1))
    for heads in (Heads(3), Heads(3, (1, 2, 3))):
        labelled(logits, zooms, (13, 11, 7), heads)
        assert seen[:3] == [("first", (7, 5, 9)), ("middle", (7, 11, 9)), ("last", (7, 11, 7))]
        assert {name for name, _ in seen} == {"first", "middle", "last"}
        seen.clear()


@pytest.mark.parametrize(("at_once", "planes"), [(1, [1] * 5), (2 * 12 + 11, [2, 2, 1]), (1 << 18, [5])])
def test_planes_that_are_not_resampled_are_labelled_some_at_a_time(
    at_once: int, planes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    run_all = block_argmax.run_all

    def noted(work: Any, items: Any, threads: int) -> Any:
        items = list(items)
        seen.extend([stop[0] - start[0] if isinstance(start, tuple) else stop - start for start, stop in items])
        assert threads == 3
        return run_all(work, items, threads)

    monkeypatch.setattr(block_argmax, "run_all", noted)
    monkeypatch.setattr(block_argmax, "AT_ONCE", at_once)
    logits = random_logits((5, 3, 4), 3)
    found = labelled(logits, (None, None, None), (5, 3, 4), Heads(3), threads=3)
    np.testing.assert_array_equal(found, logits.argmax(0))
    assert seen == planes
    labelled(logits, (None, None, AxisZoom(4, 7, 1)), (5, 3, 7), Heads(3), threads=3)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
@pytest.mark.parametrize("zooms", [(None, None, None), (AxisZoom(8, 13, 1), None, AxisZoom(9, 7, 1))])
def test_other_types_are_labelled_as_float32(dtype: Any, zooms: Any) -> None:
    logits, shape = random_logits((8, 5, 9), 3).astype(dtype), (13 if zooms[0] else 8, 5, 7 if zooms[2] else 9)
    for heads in (Heads(3), Heads(3, (1, 2, 3))):
        expected = labelled(logits.astype(np.float32), zooms, shape, heads)
        np.testing.assert_array_equal(labelled(logits, zooms, shape, heads), expected)
    if dtype == np.float64:
        level = np.stack([np.ones((8, 5, 9)), np.full((8, 5, 9), 1 + 1e-9)])
        np.testing.assert_array_equal(labelled(level, zooms, shape, Heads(2)), 0)


def test_of_equal_scores_the_first_class_wins() -> None:
    logits = np.zeros((3, 4, 5, 6), np.float32)
    for zooms, shape in (((None, None, None), (4, 5, 6)), ((AxisZoom(4, 7, 1), None, None), (7, 5, 6))):
        np.testing.assert_array_equal(labelled(logits, zooms, shape, Heads(3)), 0)
