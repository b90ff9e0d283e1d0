"""The state of one server: less is sent when it is full, nothing while it rests, and it is asked before it is used."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.support.tile_requests import requests
from voxtile import ConnectionConfig
from voxtile.triton.endpoint import Call, Endpoint
from voxtile.triton.lane import STRIKES, Lane
from voxtile.triton.retry import LONGEST_PAUSE_S


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with contextlib.closing(Endpoint("127.0.0.1:9", ConnectionConfig())) as one:
        one.serves_model = True
        yield one


def sent(lane: Lane, count: int, now: float) -> list[Call]:
    calls = [Call(request, None, number) for number, request in enumerate(requests(count))]
    for call in calls:
        lane.sent(call, now)
    return calls


def test_a_burst_of_rejections_halves_the_window_once_and_stops_sending_for_a_moment(endpoint: Endpoint) -> None:
    lane = Lane(0, endpoint, 8)
    lane.window.size = 8
    for call in sent(lane, 8, now=1.0):
        lane.calls.discard(call)
        lane.slow_down(call, "full", now=2.0)
    assert lane.window.size == 4
    assert not lane.has_room(2.0)
    assert lane.has_room(2.0 + LONGEST_PAUSE_S)
    [later] = sent(lane, 1, now=4.0)
    lane.slow_down(later, "still full", now=5.0)
    assert lane.window.size == 2
    assert lane.last_error == "still full"


def test_only_a_good_answer_ends_a_row_of_failures(endpoint: Endpoint) -> None:
    lane = Lane(0, endpoint, 8)
    assert [lane.strike("bad") for _ in range(STRIKES)] == [False] * (STRIKES - 1) + [True]
    lane.fail("bad", now=1.0)
    lane.back()
    assert lane.strike("bad")
    lane.answered(now=2.0)
    assert not lane.strike("bad")


def test_a_server_that_failed_is_asked_before_it_is_used_again_by_anyone(endpoint: Endpoint) -> None:
    lane = Lane(0, endpoint, 8)
    assert lane.has_room(0.0)
    lane.fail("gone", now=1.0)
    assert not lane.has_room(99.0)
    assert not lane.due(1.0)
    assert lane.due(1.0 + LONGEST_PAUSE_S)
    another = Lane(0, endpoint, 8)  # of the next scan
    assert not another.has_room(99.0)
    assert another.due(0.0)
    lane.back()
    assert lane.has_room(1.0 + LONGEST_PAUSE_S)
    assert Lane(0, endpoint, 8).has_room(0.0)


def test_no_more_is_in_flight_than_the_window_allows(endpoint: Endpoint) -> None:
    lane = Lane(0, endpoint, 8)
    sent(lane, lane.window.size - 1, now=0.0)
    assert lane.has_room(0.0)
    sent(lane, 1, now=0.0)
    assert not lane.has_room(0.0)
    assert lane.load == 1
