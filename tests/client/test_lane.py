"""The state of one server: less is sent when it is full, nothing while it rests, and it is asked before it is used."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.support.simulated_servers import MODEL
from tests.support.tile_requests import requests
from voxtile import ConnectionConfig, ModelError
from voxtile.triton import retry
from voxtile.triton.endpoint import Call, Endpoint
from voxtile.triton.lane import Lane
from voxtile.triton.retry import LONGEST_PAUSE_S


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with contextlib.closing(Endpoint("127.0.0.1:9", ConnectionConfig())) as one:
        one.serves_model = True
        yield one


@pytest.fixture
def longest_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses without jitter: 0.2, 0.4, 0.8 s after one, two, three failures in a row."""
    monkeypatch.setattr(retry.random, "uniform", lambda _, most: most)


def sent(lane: Lane, count: int, now: float) -> list[Call]:
    calls = [Call(request, None, number, MODEL) for number, request in enumerate(requests(count))]
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


def test_what_was_sent_at_the_moment_of_a_rejection_belongs_to_its_burst(endpoint: Endpoint) -> None:
    lane = Lane(0, endpoint, 8)
    lane.window.size = 8
    for call in sent(lane, 3, now=0.5):
        lane.slow_down(call, "full", now=0.5)
    assert lane.window.size == 4


def test_rests_grow_with_failures_in_a_row_of_either_kind(endpoint: Endpoint, longest_pauses: None) -> None:
    lane = Lane(0, endpoint, 8)
    lane.fail("gone", now=10.0)
    assert lane.asleep_until == pytest.approx(10.2)
    [call] = sent(lane, 1, now=11.0)
    lane.slow_down(call, "full", now=12.0)
    assert lane.asleep_until == pytest.approx(12.4)
    lane.fail("gone", now=20.0)
    assert lane.asleep_until == pytest.approx(20.8)
    lane.answered(now=21.0)
    [call] = sent(lane, 1, now=22.0)
    lane.slow_down(call, "full", now=23.0)
    assert lane.asleep_until == pytest.approx(23.2)


def test_the_window_grows_with_the_answers(endpoint: Endpoint) -> None:
    lane = Lane(3, endpoint, 8)
    sent(lane, 2, now=100.0)
    for number in range(4):
        assert lane.window.size == 2
        lane.answered(now=101.0 + number)
    assert lane.window.size == 3
    assert (lane.number, lane.answers) == (3, 4)


def test_a_new_lane_has_no_record(endpoint: Endpoint) -> None:
    lane = Lane(0, endpoint, 8)
    record = (lane.answers, lane.probing, lane.restarted, lane.last_error, lane.final)
    assert record == (0, False, False, "", None)


def test_the_last_error_is_that_of_the_last_failure(endpoint: Endpoint) -> None:
    lane = Lane(0, endpoint, 8)
    lane.strike("one")
    assert lane.last_error == "one"
    lane.fail("another", now=1.0)
    assert lane.last_error == "another"


def test_what_stood_against_a_server_is_forgotten_when_it_is_back(endpoint: Endpoint) -> None:
    lane = Lane(0, endpoint, 8)
    lane.fail("gone", now=1.0)
    assert (lane.up, endpoint.serves_model) == (False, False)
    lane.final = ModelError("another build")
    lane.back()
    assert (lane.up, lane.final, endpoint.serves_model) == (True, None, True)


def test_only_a_good_answer_ends_a_row_of_failures(endpoint: Endpoint) -> None:
    lane = Lane(0, endpoint, 8)
    assert [lane.strike("bad") for _ in range(3)] == [False, False, True]
    lane.fail("bad", now=1.0)
    lane.back()
    assert lane.strike("bad")
    lane.answered(now=2.0)
    assert [lane.strike("bad") for _ in range(3)] == [False, False, True]


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
