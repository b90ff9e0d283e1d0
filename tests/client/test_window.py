"""The window in flight: grows with throughput, rests without, halves on rejection, stays within its bounds."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from voxtile.triton.window import Window


def serve(window: Window, rate: Callable[[int], float], answers: int = 400, now: float = 0.0) -> float:
    """Lets `answers` arrive at `rate(window size)` a second from the time `now` on; returns the time then."""
    window.sent(now)
    for _ in range(answers):
        now += 1 / rate(window.size)
        window.answered(now)
    return now


def test_grows_while_more_in_flight_brings_more() -> None:
    window = Window(16)
    serve(window, lambda size: 10.0 * size)
    assert window.size == 16


def test_rests_where_the_server_is_the_bound() -> None:
    window = Window(16)
    serve(window, lambda size: 10.0)
    assert window.size <= 3


def test_once_it_rests_only_a_rejection_lets_it_grow_again() -> None:
    window = Window(16)
    now = serve(window, lambda size: 10.0)
    size = window.size
    now = serve(window, lambda size: 1000.0 * size, now=now)
    assert window.size == size
    window.rejected()
    serve(window, lambda size: 1000.0 * size, now=now)
    assert window.size == 16


def test_answers_to_what_was_sent_before_a_rejection_measure_nothing() -> None:
    window = Window(16, start=8)
    window.sent(0.0)
    window.rejected()
    for _ in range(50):
        window.answered(1.0)
    assert window.size == 4


def test_stops_near_where_the_throughput_stops() -> None:
    window = Window(16)
    serve(window, lambda size: 10.0 * min(size, 6))
    assert 6 <= window.size <= 8


def test_a_rejection_halves_it_and_it_never_reaches_zero() -> None:
    window = Window(16, start=8)
    sizes = []
    for _ in range(5):
        window.rejected()
        sizes.append(window.size)
    assert sizes == [4, 2, 1, 1, 1]


@given(st.lists(st.booleans(), max_size=200), st.integers(1, 24))
def test_it_grows_back_to_its_limit_after_any_rejections(history: list[bool], limit: int) -> None:
    window, now = Window(limit), 0.0
    for rejected in history:
        if rejected:
            window.rejected()
        else:
            now = serve(window, lambda size: 10.0 * size, 3, now)
        assert 1 <= window.size <= window.limit
    window.rejected()
    serve(window, lambda size: 10.0 * size, 2000, now)
    assert window.size == window.limit


@given(st.floats(0.01, 1000), st.floats(0.01, 1000), st.integers(2, 16))
def test_a_rejection_is_forgotten_however_slow_the_server_is_then(before: float, after: float, limit: int) -> None:
    window = Window(limit)
    now = serve(window, lambda size: before)
    window.rejected()
    size = window.size
    serve(window, lambda size: after, now=now)
    assert window.size == min(size + 1, limit)  # and rests there, as more brings no more


def test_never_above_its_limit() -> None:
    assert Window(1, start=4).size == 1
    assert Window(0).size == 1
