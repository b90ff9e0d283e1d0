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
    made = [backlog.next(0.0, most=100) for _ in range(7)]
    assert [one.index for one in made if one] == list(range(7))
    assert backlog.next(0.0, most=100) is None
    handed: list[float] = []
    for index in order:
        assert not backlog.complete
        handed += [float(scores[0]) for scores in backlog.answered(index, np.array([index]))]
    assert handed == list(range(7))
    assert backlog.complete


def test_no_more_is_made_than_the_caller_has_taken_and_may_wait() -> None:
    backlog = Backlog(requests(9, batch=1))
    assert [backlog.next(0.0, most=2) is None for _ in range(3)] == [False, False, True]
    backlog.taken()
    assert backlog.next(0.0, most=2) is not None
    assert backlog.next(0.0, most=2) is None


def test_a_request_that_is_sent_again_waits_for_its_time_and_goes_first() -> None:
    backlog = Backlog(requests(9, batch=1))
    first = backlog.next(0.0, most=9)
    assert first is not None
    backlog.retry(first, when=5.0)
    assert backlog.next_retry == 5.0
    second = backlog.next(4.9, most=9)
    assert second is not None
    assert second.index == 1
    assert backlog.next(5.0, most=9) is first
    assert backlog.next_retry is None
