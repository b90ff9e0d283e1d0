"""What is given up comes in order, and large requests are fewer and smaller."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.support.strips import cut_plan
from voxtile.card import Tiling
from voxtile.tiling.plan import plan_tiles
from voxtile.tiling.schedule import MAX_INFLIGHT_BYTES, MIN_IN_FLIGHT, Schedule, at_once, schedules
from voxtile.tiling.strips import Strip
from voxtile.triton.pump import ready_ahead


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


@given(st.integers(1, 16), st.integers(1, 16), st.integers(1, 2**34))
def test_large_requests_are_fewer_and_smaller_and_never_stop_the_engine(asked: int, most: int, size: int) -> None:
    in_flight, batch = at_once(asked, most, size)
    assert min(asked, MIN_IN_FLIGHT) <= in_flight <= asked
    assert 1 <= batch <= most
    assert (in_flight <= MIN_IN_FLIGHT and batch == 1) or in_flight * batch * size <= MAX_INFLIGHT_BYTES
    assert ready_ahead(in_flight) <= in_flight


@given(st.integers(1, 16), st.integers(1, 16), st.integers(1, 2**20))
def test_small_tiles_are_sent_as_asked(asked: int, most: int, size: int) -> None:
    assert at_once(asked, most, size) == (asked, most)


def test_a_quarter_of_a_gibibyte_is_in_flight_to_one_server() -> None:
    mib = 2**20
    assert at_once(999, 1, mib) == (256, 1)
    assert at_once(999, 4, mib) == (64, 4)
    assert at_once(999, 3, mib) == (85, 3)
    assert at_once(999, 4, 64 * mib) == (2, 2)  # smaller batches before fewer than two requests
    assert at_once(999, 4, 65 * mib) == (3, 1)
    assert at_once(999, 4, 999 * mib) == (2, 1)
    assert at_once(1, 4, 999 * mib) == (1, 1)


def test_single_precision_and_one_strip_come_first() -> None:
    plan = plan_tiles((32, 24, 8), (16, 16, 16), Tiling())
    first = next(schedules(5, 3, plan, lambda axis, n: tuple(cut_plan(plan, axis, n))))
    assert first == Schedule(5, 3, tuple(cut_plan(plan, 1, 1)), half=False)


def test_requests_are_halved_down_to_one_and_then_tiles() -> None:
    plan = plan_tiles((8, 8, 8), (64, 64, 64), Tiling())
    found = list(schedules(5, 3, plan, lambda axis, n: tuple(cut_plan(plan, axis, n))))
    rungs = [(5, 3), (2, 3), (1, 3), (1, 1)]
    assert [(one.in_flight, one.batch) for one in found] == 2 * rungs
