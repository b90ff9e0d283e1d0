"""Requests are made as they are needed, and their answers handed over in order, whatever order they come in."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.support.tile_requests import requests
from voxtile.triton.backlog import Backlog


@given(st.permutations(range(7)))
def test_answers_in_any_order_are_handed_over_in_the_requests_order(order: list[int]) -> None:
    backlog = Backlog(requests(7, batch=1))
    assert backlog.complete is False
    made = [backlog.next(0.0, most=100) for _ in range(7)]
    assert [one.index for one in made if one] == list(range(7))
    assert backlog.next(0.0, most=100) is None
    handed: list[float] = []
    for index in order:
        assert backlog.complete is False
        handed += [float(scores[0]) for scores in backlog.answered(index, np.array([index]))]
    assert handed == list(range(7))
    assert backlog.complete


def test_no_more_is_made_than_the_caller_has_taken_and_may_wait() -> None:
    backlog = Backlog(requests(9, batch=1))
    assert [backlog.next(0.0, most=2) is None for _ in range(3)] == [False, False, True]
    backlog.taken()
    assert backlog.next(0.0, most=2) is not None
    assert backlog.next(0.0, most=2) is None
    backlog.taken()
    assert backlog.next(0.0, most=2) is not None
    assert backlog.next(0.0, most=2) is None


def test_a_request_that_is_sent_again_waits_for_its_time_and_goes_first() -> None:
    backlog = Backlog(requests(9, batch=1))
    first = backlog.next(0.0, most=9)
    assert first is not None
    backlog.retry(first, when=5.0)
    assert backlog.next_retry_after(0.0) == 5.0
    assert backlog.next_retry_after(5.0) is None  # it is due
    second = backlog.next(4.9, most=9)
    assert second is not None
    assert second.index == 1
    assert backlog.next(5.0, most=9) is first
    assert backlog.next_retry_after(0.0) is None


def test_a_request_that_no_server_may_have_now_is_overtaken_and_kept() -> None:
    backlog = Backlog(requests(9, batch=1))
    first, second = backlog.next(0.0, most=9), backlog.next(0.0, most=9)
    assert first is not None
    assert second is not None
    for one in (second, first):
        backlog.retry(one, when=1.0)
    assert backlog.next(2.0, most=9, fits=lambda one: one is first) is first
    third = backlog.next(2.0, most=9, fits=lambda one: False)
    assert third is not None
    assert third.index == 2
    assert backlog.next_retry_after(2.0) is None  # it is due; nothing but a server can help
    assert backlog.next(2.0, most=9) is second


def test_what_is_made_and_not_answered_is_outstanding() -> None:
    backlog = Backlog(requests(3, batch=1))
    for _ in range(4):
        backlog.next(0.0, most=9)
    assert backlog.outstanding == 3
    assert not list(backlog.answered(1, np.zeros(1)))  # it waits for request 0
    assert backlog.outstanding == 2
    assert len(list(backlog.answered(0, np.zeros(1)))) == 2
    assert backlog.outstanding == 1
