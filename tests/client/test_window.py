"""The window in flight: grows with throughput, rests without, halves on rejection, stays within its bounds."""

from __future__ import annotations

from voxtile.triton.window import Window


def serve(window: Window, rate: object, answers: int = 400) -> None:
    """Lets `answers` arrive at `rate(window size)` a second."""
    now = 0.0
    window.sent(now)
    for _ in range(answers):
        now += 1 / rate(window.size)
        window.answered(now)


def test_grows_while_more_in_flight_brings_more() -> None:
    window = Window(16)
    serve(window, lambda size: 10.0 * size)
    assert window.size == 16


def test_rests_where_the_server_is_the_bound() -> None:
    window = Window(16)
    serve(window, lambda size: 10.0)
    assert window.size <= 3


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


def test_never_above_its_limit() -> None:
    assert Window(1, start=4).size == 1
    assert Window(0).size == 1
