"""Strips: where a volume is cut, how often, and what a part of it holds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.support.memory_limits import held_bytes
from tests.support.strips import cut_plan
from voxtile.card import Tiling
from voxtile.tiling.plan import plan_tiles
from voxtile.tiling.stitch import Stitcher
from voxtile.tiling.strips import Strip, cut_axis, most_strips, sent_again, spans, tiles_of, whole


def test_strips_hold_less_the_narrower_they_are() -> None:
    plan = plan_tiles((60, 64, 40), (16, 16, 16), Tiling(overlap=0.25))
    held = [held_bytes(Stitcher(plan, 14, None, cut_plan(plan, 1, count)[0])) for count in (1, 2, 4, 8)]
    assert held == sorted(held, reverse=True)
    assert held[3] < held[0] / 5


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


def test_a_strip_has_rows_to_compute_and_rows_to_label() -> None:
    strip = Strip(2, (3, 8), (4, 11))
    assert strip.narrowed((10, 20, 30)) == (10, 20, 5)
    assert Strip(1, (3, 8), (4, 11)).narrowed((10, 20, 30)) == (10, 5, 30)
    assert strip.narrowed_target((10, 20, 30)) == (10, 20, 7)
    assert Strip(1, (3, 8), (4, 11)).narrowed_target((10, 20, 30)) == (10, 7, 30)
    assert strip.within(3) == (slice(None), slice(None), slice(4, 11))
    assert whole((10, 20, 30), (7, 8, 9)) == Strip(1, (0, 20), (0, 8))


def test_spans_are_of_nearly_the_same_length() -> None:
    assert spans(10, 3) == [(0, 3), (3, 6), (6, 10)]
    assert spans(10, 3, 4) == [(0, 4), (4, 8), (8, 10)]
    assert spans(2, 5) == [(0, 1), (1, 2)]


def test_slices_are_cut_across_and_else_the_longer_axis() -> None:
    assert cut_axis(plan_tiles((9, 30, 20), (4, 4, 1), Tiling())) == 2
    assert cut_axis(plan_tiles((9, 20, 30), (4, 2, 2), Tiling())) == 2
    assert cut_axis(plan_tiles((9, 30, 20), (4, 4, 2), Tiling())) == 1


def test_a_strip_is_a_quarter_of_a_tile_wide_or_one_row() -> None:
    plan = plan_tiles((9, 33, 20), (4, 16, 1), Tiling())
    assert most_strips(plan, 1) == 8
    assert most_strips(plan, 2) == 20
    assert most_strips(plan_tiles((9, 64, 20), (4, 10, 1), Tiling()), 1) == 32  # a quarter of 10 is 2 rows
    assert most_strips(plan_tiles((9, 3, 3), (4, 64, 64), Tiling()), 1) == 1
