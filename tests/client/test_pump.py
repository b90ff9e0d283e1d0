"""The pump's policy, step by step: what is sent where and when, what is waited for, and what ends a scan.

Servers and time are simulated; see `tests.support.simulated_servers`. Times are in seconds from the pump's start.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

from tests.support.simulated_servers import BUILD, Server, Simulation, error, first, right, wrong
from voxtile import AccessError, NoResponseError, OtherBuildError, Request, ServerUnavailable, TileError
from voxtile.triton.pump import inflight_bytes, ready_ahead

NUMBERS = [float(number) for number in range(20)]


@pytest.fixture
def simulation(monkeypatch: pytest.MonkeyPatch) -> Simulation:
    return Simulation(monkeypatch)


def seconds(simulation: Simulation) -> float:
    """How long it has taken so far."""
    return simulation.now - 1000.0


def from_start(times: list[float]) -> list[float]:
    return [round(time - 1000.0, 6) for time in times]


# What is in flight -------------------------------------------------------------------------------------------


def test_answers_come_in_order_and_are_counted(simulation: Simulation) -> None:
    server = simulation.server()
    assert simulation.run([server]) == NUMBERS
    traffic = simulation.traffic
    assert (traffic.requests, traffic.retries) == (20, 0)
    assert traffic.bytes_sent == traffic.bytes_received == 20 * 6 * 4
    assert not traffic.shared_memory
    assert server.indices == list(range(20))
    assert server.released == [(index, True) for index in range(20)]


def test_the_bytes_that_come_back_are_those_of_the_scores(simulation: Simulation) -> None:
    server = simulation.server(lambda request: np.zeros((1, 2, 6), np.float16))
    simulation.run([server], count=5)
    assert simulation.traffic.bytes_sent == 5 * 6 * 4
    assert simulation.traffic.bytes_received == 5 * 12 * 2


def test_traffic_adds_up_over_scans(simulation: Simulation) -> None:
    for done in (1, 2):
        simulation.ready.clear()
        simulation.run([simulation.server()], count=5)
        assert simulation.traffic.requests == 5 * done
        assert simulation.traffic.bytes_received == 5 * done * 24


def test_two_are_in_flight_at_first_and_more_while_more_are_answered_a_second(simulation: Simulation) -> None:
    server = simulation.server()
    simulation.run([server], count=60)
    assert len([when for when in server.times if when == 1000.0]) == 2
    assert simulation.traffic.peak_in_flight > 6


@pytest.mark.parametrize("in_flight", [1, 3])
def test_never_more_than_allowed_are_in_flight_to_one_server(simulation: Simulation, in_flight: int) -> None:
    servers = [simulation.server(), simulation.server()]
    simulation.run(servers, count=60, in_flight=in_flight)
    assert simulation.traffic.peak_in_flight == 2 * in_flight


def test_the_peak_is_that_of_all_scans_that_count_together(simulation: Simulation) -> None:
    simulation.run([simulation.server()], count=60, in_flight=3)
    simulation.ready.clear()
    simulation.run([simulation.server()], count=1)
    assert simulation.traffic.peak_in_flight == 3


def test_that_memory_was_shared_once_is_told(simulation: Simulation) -> None:
    server = simulation.server()
    server.slot = object()

    def without_from_the_third_on(request: object) -> object:
        server.slot = object() if len(server.sent) < 2 else None
        return right(request)  # type: ignore[arg-type]

    server.answer = without_from_the_third_on
    simulation.run([server], count=9)
    assert simulation.traffic.shared_memory is True


def test_the_server_with_the_smaller_share_in_flight_is_next(simulation: Simulation) -> None:
    """Two windows of two fill in turns."""
    servers = [simulation.server(), simulation.server()]
    simulation.run(servers, count=4)
    assert [server.indices for server in servers] == [[0, 2], [1, 3]]


def test_a_server_that_is_faster_does_more(simulation: Simulation) -> None:
    fast, slow = simulation.server(seconds=0.1), simulation.server(seconds=1.0)
    simulation.run([slow, fast], count=60)
    assert len(fast.sent) > 1.5 * len(slow.sent)


@pytest.mark.parametrize(("servers", "in_flight", "most"), [(1, 1, 2), (1, 2, 4), (3, 1, 6), (2, 2, 7)])
def test_a_caller_that_takes_nothing_is_not_drowned(
    simulation: Simulation, servers: int, in_flight: int, most: int
) -> None:
    """What is made takes memory until it is taken; as much as is said to those who ask how much there has to be."""
    simulation.caller_s = None
    several = [simulation.server(seconds=0.1 + 0.01 * number) for number in range(servers)]
    for server in several:  # no two answers come at once
        server.answer = lambda request, server=server: (
            setattr(server, "seconds", server.seconds + 0.03) or right(request)
        )
    pump = simulation.pump(several, 60, in_flight)
    simulation.after(50.0, lambda: simulation.put(("stop",)))
    pump.run()
    assert simulation.made == list(range(most))
    assert inflight_bytes(in_flight, servers, 1000) == 2 * 1000 * most


def test_a_slow_caller_is_waited_for_without_an_error(simulation: Simulation) -> None:
    simulation.caller_s = 100.0
    server = simulation.server()
    assert simulation.run([server], no_response_timeout_s=1.0) == NUMBERS
    assert seconds(simulation) > 300


def test_the_answers_that_wait_are_few_and_never_more_than_those_in_flight() -> None:
    assert [ready_ahead(in_flight) for in_flight in (1, 3, 4, 5, 100)] == [1, 3, 4, 4, 4]


def test_the_memory_of_requests_in_flight_counts_twice() -> None:
    """gRPC copies each. Eight in flight, and four answers that wait: twelve requests."""
    assert inflight_bytes(8, 1, 10) == 2 * 12 * 10


# Failures of a request ---------------------------------------------------------------------------------------


def test_a_request_that_failed_is_sent_again_after_pauses_that_grow(simulation: Simulation) -> None:
    """It fails at once. 0.1, 0.2 and 0.4 s are the pauses, without jitter."""
    server = simulation.server(first(3, error("ABORTED", "others first")), seconds=0.0)
    assert simulation.run([server], count=1) == [0.0]
    assert from_start(server.times) == [0.0, 0.1, 0.3, 0.7]
    assert simulation.traffic.retries == 3
    assert server.released == [(0, False), (0, False), (0, False), (0, True)]


def test_after_its_last_try_the_scan_ends_with_the_reason(simulation: Simulation) -> None:
    server = simulation.server(
        lambda request: error("ABORTED", " others first ") if request.index == 2 else right(request)
    )
    with pytest.raises(TileError) as caught:
        simulation.run([server])
    assert str(caught.value) == (
        "model 'model': request 2 (1 tiles) failed 4 times, last at server-1:8001: others first; "
        "the server broke off, because of other requests"
    )
    assert server.indices.count(2) == 4


def test_an_error_without_words_is_named_by_its_status(simulation: Simulation) -> None:
    server = simulation.server(lambda request: error("INVALID_ARGUMENT"))
    with pytest.raises(TileError) as caught:
        simulation.run([server], count=1)
    assert str(caught.value) == (
        "model 'model': request 0 (1 tiles) failed 1 time, last at server-1:8001: StatusCode.INVALID_ARGUMENT; "
        "the server refuses this very request"
    )


def test_an_error_with_neither_status_nor_words_is_a_failure_like_any_other(simulation: Simulation) -> None:
    nothing = error("UNKNOWN")
    nothing._status = nothing._msg = None
    server = simulation.server(lambda request: nothing)
    with pytest.raises(TileError, match=r"failed 4 times, last at server-1:8001: ; the server failed, or answered wr"):
        simulation.run([server], count=1)


def test_an_answer_that_is_none_is_a_failure_with_advice(simulation: Simulation) -> None:
    server = simulation.server(lambda request: wrong("expected four, found five"))
    with pytest.raises(TileError) as caught:
        simulation.run([server], count=1)
    assert str(caught.value) == (
        "model 'model': request 0 (1 tiles) failed 4 times, last at server-1:8001: expected four, found five; "
        "the server failed, or answered wrongly; look at the server's log"
    )
    assert server.released == [(0, True)] * 4  # the server has finished with the memory


def test_what_one_server_refuses_goes_to_another_at_once(simulation: Simulation) -> None:
    refusing, other = simulation.server(lambda request: error("INVALID_ARGUMENT"), 0.0), simulation.server(seconds=0.0)
    assert simulation.run([refusing, other], count=1) == [0.0]
    assert seconds(simulation) == 0
    assert (refusing.indices, other.indices) == ([0], [0])


def test_what_broke_at_one_server_goes_to_another_after_a_pause(simulation: Simulation) -> None:
    broken, other = simulation.server(lambda request: error("INTERNAL"), 0.0), simulation.server(seconds=0.0)
    assert simulation.run([broken, other], count=1) == [0.0]
    assert from_start(other.times) == [0.1]


def test_a_server_that_breaks_at_three_requests_in_a_row_rests_and_is_asked_for_its_card(
    simulation: Simulation,
) -> None:
    server = simulation.server(first(3, error("INTERNAL", "out of order")), seconds=0.0)
    assert simulation.run([server], count=1) == [0.0]
    # The third failure, at 0.3 s, makes it rest for 0.2 s; the request itself waits for 0.4 s.
    assert from_start(server.times) == [0.0, 0.1, 0.3, 0.7]
    assert from_start(server.asked) == [0.5]
    assert server.forgot == 1


def test_a_request_that_a_server_has_failed_waits_for_a_better_one_that_is_busy(simulation: Simulation) -> None:
    """Both have one window; the better server is busy for a second with the request before."""
    bad = simulation.server(lambda request: error("INTERNAL") if request.index == 1 else right(request), 0.0)
    good = simulation.server(seconds=1.0)
    assert simulation.run([good, bad], count=2, in_flight=1) == [0.0, 1.0]
    assert (good.indices, bad.indices) == ([0, 1], [1])
    assert from_start(good.times) == [0.0, 1.0]


# A server that has too much to do ----------------------------------------------------------------------------


def test_a_full_server_gets_less_and_the_request_is_no_worse_for_it(simulation: Simulation) -> None:
    server = simulation.server(first(9, error("RESOURCE_EXHAUSTED", "too many")), seconds=0.0)
    assert simulation.run([server], count=1, tries=1) == [0.0]
    assert simulation.traffic.retries == 9
    # It rests for 0.2, 0.4 and 0.8 s, then for a second each time.
    assert from_start(server.times) == [0.0, 0.2, 0.6, 1.4, 2.4, 3.4, 4.4, 5.4, 6.4, 7.4]
    assert not server.asked


def test_a_request_waits_a_tenth_of_a_second_where_another_server_has_room(simulation: Simulation) -> None:
    full, other = simulation.server(lambda _: error("RESOURCE_EXHAUSTED"), 0.0), simulation.server(seconds=0.0)
    assert simulation.run([full, other], count=1) == [0.0]
    assert from_start(other.times) == [0.1]


def test_a_full_server_halves_what_is_in_flight(simulation: Simulation) -> None:
    def full_at_index_40(request: object) -> object:
        return (
            error("RESOURCE_EXHAUSTED") if request.index == 40 and not at_40 and not at_40.append(1) else right(request)
        )  # type: ignore[attr-defined, func-returns-value]

    at_40: list[int] = []
    server = simulation.server(full_at_index_40)
    assert len(simulation.run([server], count=80)) == 80
    after = server.indices.index(40, server.indices.index(40) + 1)
    rest = [when for when in server.times[after:] if when == server.times[after]]
    assert len(rest) <= 4


# A server that is lost ---------------------------------------------------------------------------------------


def test_what_a_lost_server_had_goes_to_another_at_once(simulation: Simulation) -> None:
    lost, other = simulation.server(lambda _: error("UNAVAILABLE", "gone"), 0.0), simulation.server(seconds=0.0)
    lost.build = ServerUnavailable("gone")
    assert simulation.run([lost, other], tries=1) == NUMBERS
    assert seconds(simulation) == 0
    assert lost.forgot == 1
    assert lost.serves_model is False


def test_a_lost_server_is_asked_first_and_then_used_again(simulation: Simulation) -> None:
    server = simulation.server(first(1, error("UNAVAILABLE", "gone")), seconds=0.0)
    assert simulation.run([server], count=3, in_flight=1) == [0.0, 1.0, 2.0]
    assert from_start(server.asked) == [0.2]
    assert from_start(server.times) == [0.0, 0.2, 0.2, 0.2]
    assert server.serves_model is True


def test_a_server_that_stays_away_is_asked_again_and_again_and_given_up_in_time(simulation: Simulation) -> None:
    """Rests of 0.2, 0.4, 0.8 s and a second; each question takes no time here."""
    server = simulation.server(lambda _: error("UNAVAILABLE", "gone"), seconds=0.0)
    server.build = ServerUnavailable("nobody there")
    with pytest.raises(NoResponseError) as caught:
        simulation.run([server], count=3, no_response_timeout_s=4.0)
    assert from_start(server.asked) == [0.2, 0.6, 1.4, 2.4, 3.4]
    assert 4.0 < seconds(simulation) < 5.1
    assert str(caught.value) == (
        f"model 'model': no server has answered for {seconds(simulation):.0f} s, 0 requests were done "
        "(server-1:8001: nobody there)"
    )


def test_the_error_tells_of_every_server(simulation: Simulation) -> None:
    lost, silent = simulation.server(lambda _: error("UNAVAILABLE", "gone")), simulation.server(lambda _: None)
    lost.build = ServerUnavailable("nobody there")
    with pytest.raises(NoResponseError, match=r"\(server-1:8001: nobody there; server-2:8001: silent\)"):
        simulation.run([lost, silent], no_response_timeout_s=2.0)


def test_a_lost_server_is_named_with_what_it_said_until_it_has_been_asked(simulation: Simulation) -> None:
    simulation.thread_s = 99.0
    with pytest.raises(NoResponseError, match=r"\(server-1:8001: gone\)"):
        simulation.run([simulation.server(lambda _: error("UNAVAILABLE", "gone"))], no_response_timeout_s=2.0)


def test_time_without_an_answer_counts_from_the_last_good_one(simulation: Simulation) -> None:
    slow = simulation.server(seconds=3.0)
    assert simulation.run([slow], count=4, in_flight=1, no_response_timeout_s=3.5) == [0.0, 1.0, 2.0, 3.0]
    simulation.ready.clear()
    stuck = simulation.server(lambda request: right(request) if request.index < 2 else None, seconds=3.0)
    with pytest.raises(NoResponseError, match=r"for [45] s, 2 requests were done"):
        simulation.run([stuck], count=4, in_flight=1, no_response_timeout_s=3.5)


def test_a_server_that_is_asked_is_not_asked_twice_at_once(simulation: Simulation) -> None:
    server = simulation.server(first(1, error("UNAVAILABLE")), seconds=0.0)
    simulation.thread_s = 5.0
    assert simulation.run([server], count=1) == [0.0]
    assert simulation.threads == ["voxtile-probe"]
    assert from_start(server.times) == [0.0, 5.2]


def test_a_question_that_fails_in_an_unknown_way_is_asked_again(simulation: Simulation) -> None:
    server = simulation.server(first(1, error("UNAVAILABLE")), seconds=0.0)
    server.build = RuntimeError("what is this?")
    simulation.after(1.0, lambda: setattr(server, "build", "the card"))
    assert simulation.run([server], count=1) == [0.0]
    assert from_start(server.asked) == [0.2, 0.6, 1.4]
    server.answer, server.build = first(1, error("UNAVAILABLE")), RuntimeError("what is this?")
    simulation.ready.clear()
    with pytest.raises(NoResponseError, match=r"\(server-1:8001: server-1:8001: what is this\?\)"):
        simulation.run([server], count=1, no_response_timeout_s=1.0)


@pytest.mark.parametrize("code", ["UNAVAILABLE", "DEADLINE_EXCEEDED", "NOT_FOUND", "CANCELLED"])
def test_a_server_not_known_to_serve_the_model_is_asked_before_its_first_request(
    simulation: Simulation, code: str
) -> None:
    server = simulation.server()
    server.serves_model = False
    assert simulation.run([server]) == NUMBERS
    assert from_start(server.asked) == [0.0]


# Access and other builds -------------------------------------------------------------------------------------


def test_a_scan_ends_at_once_where_the_only_server_refuses_access(
    simulation: Simulation, caplog: pytest.LogCaptureFixture
) -> None:
    server = simulation.server(lambda _: error("UNAUTHENTICATED", "no such token"), seconds=0.0)
    with pytest.raises(AccessError) as caught:
        simulation.run([server])
    assert str(caught.value) == (
        "server-1:8001: the server refuses access (no such token); give a valid token, as the server expects it, "
        "with --header NAME:VALUE"
    )
    assert seconds(simulation) == 0
    assert not caplog.records  # it does not go on without it


def test_one_of_two_that_refuses_access_is_told_of_once(
    simulation: Simulation, caplog: pytest.LogCaptureFixture
) -> None:
    refusing, other = simulation.server(lambda _: error("PERMISSION_DENIED", "no"), 0.0), simulation.server()
    refusing.build = AccessError("server-1:8001: the server refuses access (no)")
    for _ in range(2):
        simulation.ready.clear()
        assert simulation.run([refusing, other]) == NUMBERS
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert told[0].startswith("server-1:8001: the server refuses access (no)")
    assert all(line.endswith("; going on without it") for line in told)
    assert len(told) == len(set(told)) <= 2


def test_two_that_refuse_access_end_the_scan(simulation: Simulation) -> None:
    servers = [simulation.server(lambda _: error("UNAUTHENTICATED", "no"), 0.0) for _ in range(2)]
    for number, server in enumerate(servers, 1):
        server.build = AccessError(f"server-{number}:8001: no")
    with pytest.raises(AccessError):
        simulation.run(servers)


def test_a_server_that_gives_access_again_is_used_again(simulation: Simulation) -> None:
    refusing, other = simulation.server(first(1, error("UNAUTHENTICATED", "no")), 0.1), simulation.server(seconds=1.0)
    assert simulation.run([refusing, other]) == NUMBERS
    assert len(refusing.sent) > 5


def test_a_server_that_returns_with_another_build_is_not_used(
    simulation: Simulation, caplog: pytest.LogCaptureFixture
) -> None:
    returning, other = simulation.server(first(1, error("UNAVAILABLE")), 0.0), simulation.server(seconds=0.5)
    returning.build = "another card"
    assert simulation.run([returning, other], in_flight=1) == NUMBERS
    assert len(returning.sent) == 1
    assert len(returning.asked) > 2  # it may come back with the right one
    [told] = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert told == (
        "server-1:8001 serves another build of model 'model' than when this client connected, and a mask must not "
        "come from two; connect again, and segment the scan from its beginning; going on without it"
    )


def test_a_scan_ends_where_the_only_server_returns_with_another_build(simulation: Simulation) -> None:
    server = simulation.server(first(1, error("UNAVAILABLE")), seconds=0.0)
    server.build = "another card"
    with pytest.raises(OtherBuildError, match="server-1:8001 serves another build of model 'model'"):
        simulation.run([server])
    assert from_start(server.asked) == [0.2]


def answers_then_fails(simulation: Simulation, code: str) -> Server:
    """A server that fails from its ninth request on, and has another build when it is asked."""
    server = simulation.server(lambda request: error(code) if request.index >= 8 else right(request), 0.01)
    server.build = "another card"
    return server


@pytest.mark.parametrize("code", ["UNAVAILABLE", "NOT_FOUND", "CANCELLED"])
def test_answers_of_before_a_restart_are_good(simulation: Simulation, code: str) -> None:
    """It was away in between: until then it answered with the build that it had."""
    assert simulation.run([answers_then_fails(simulation, code), simulation.server(seconds=0.5)]) == NUMBERS


@pytest.mark.parametrize("code", ["INTERNAL", "DEADLINE_EXCEEDED"])
def test_answers_of_a_server_that_was_never_away_are_not_where_its_build_changed(
    simulation: Simulation, code: str
) -> None:
    """Nobody knows which of them came from which build."""
    with pytest.raises(OtherBuildError, match="server-1:8001"):
        simulation.run([answers_then_fails(simulation, code), simulation.server(seconds=0.5)], count=60)


def test_memory_that_a_server_has_forgotten_says_that_it_was_away(simulation: Simulation) -> None:
    server = answers_then_fails(simulation, "NOT_FOUND")
    forgotten = error("NOT_FOUND", "Unable to find shared memory region: 'voxtile-1'")
    server.answer = lambda request: forgotten if request.index >= 8 else right(request)
    assert simulation.run([server, simulation.server(seconds=0.5)]) == NUMBERS
    assert server.forgot == 1


def test_a_build_that_changed_during_the_scan_is_noticed_at_its_end(simulation: Simulation) -> None:
    server = simulation.server()
    simulation.after(0.05, lambda: setattr(server, "build", "another card"))
    with pytest.raises(OtherBuildError, match="server-1:8001 serves another build"):
        simulation.run([server])
    assert server.serves_model is False
    assert [float(scores.mean()) for scores in simulation.ready[:-1]] == NUMBERS


def test_a_build_that_changed_after_a_restart_is_noticed_too(simulation: Simulation) -> None:
    """It came back with the right one, and answered."""
    server = simulation.server(first(1, error("UNAVAILABLE")))
    simulation.after(0.5, lambda: setattr(server, "build", "another card"))
    with pytest.raises(OtherBuildError, match="server-1:8001"):
        simulation.run([server], count=40)
    assert from_start(server.asked) == [0.3]


def moves_away(simulation: Simulation, own: str | None) -> Server:
    """A server whose public name moves to another version after eight requests; it then refuses the one before."""
    server = simulation.server()
    refused = error("UNAVAILABLE", "Request for unknown model: 'model' version 1 is not at ready state")

    def answer(request: Request) -> Any:
        if len(server.sent) == 9:
            server.build, server.own = "another card", own
        return refused if server.build != BUILD and server.entries[-1] == "model" else right(request)

    server.answer = answer
    return server


def test_a_scan_goes_on_with_its_versions_own_entry_when_the_public_name_moves(simulation: Simulation) -> None:
    server = moves_away(simulation, BUILD)
    assert simulation.run([server]) == NUMBERS
    assert server.entries[:8] == ["model"] * 8
    assert set(server.entries[-10:]) == {"model.v1"}


@pytest.mark.parametrize("own", [None, "a third card"])
def test_a_scan_ends_where_its_version_has_no_entry_of_its_own(simulation: Simulation, own: str | None) -> None:
    server = moves_away(simulation, own)
    with pytest.raises(OtherBuildError, match="server-1:8001 serves another build of model 'model'"):
        simulation.run([server])
    assert set(server.entries) == {"model"}


def test_a_version_that_is_built_again_under_its_own_entry_is_noticed_at_the_end(simulation: Simulation) -> None:
    server = moves_away(simulation, BUILD)
    simulation.after(1.0, lambda: setattr(server, "own", "a third card"))
    with pytest.raises(OtherBuildError, match="server-1:8001"):
        simulation.run([server], count=100)


def test_a_card_that_is_gone_is_another_build(simulation: Simulation) -> None:
    from voxtile.errors import NoCardError

    server = simulation.server()
    server.build = NoCardError("no card")
    with pytest.raises(OtherBuildError):
        simulation.run([server])
    assert server.serves_model is False


def test_a_server_that_is_gone_at_the_end_is_not_missed(simulation: Simulation) -> None:
    first_one, second = simulation.server(), simulation.server()
    first_one.build = ServerUnavailable("gone")
    assert simulation.run([first_one, second]) == NUMBERS
    second.build = "another card"
    simulation.ready.clear()
    with pytest.raises(OtherBuildError, match="server-2"):  # the one after it is asked all the same
        simulation.run([first_one, second])


def test_a_server_that_answered_nothing_is_not_asked_at_the_end(simulation: Simulation) -> None:
    silent, other = simulation.server(lambda _: None), simulation.server()
    silent.build = "another card"
    one = [float(number) for number in range(1)]
    assert simulation.run([other, silent], count=1) == one
    assert not silent.sent


def test_a_server_that_was_lost_and_is_still_away_is_not_asked_at_the_end(simulation: Simulation) -> None:
    lost = simulation.server(lambda request: error("UNAVAILABLE") if request.index >= 8 else right(request), 0.01)
    lost.build = "another card"
    simulation.thread_s = 99.0
    assert simulation.run([lost, simulation.server(seconds=0.01)]) == NUMBERS


# The end -----------------------------------------------------------------------------------------------------


def test_stopping_cancels_what_is_in_flight_and_takes_its_memory_back(simulation: Simulation) -> None:
    server = simulation.server(seconds=9.0)
    pump = simulation.pump([server], 20)
    simulation.after(1.0, lambda: simulation.put(("stop",)))
    pump.run()
    assert simulation.ready == [None]
    assert sorted(server.cancelled) == server.indices == [0, 1]
    assert sorted(server.released) == [(0, False), (1, False)]
    assert 1.0 <= seconds(simulation) < 1.1
    assert not server.asked


def test_idle_memory_is_left_for_what_may_be_in_flight_next(simulation: Simulation) -> None:
    server = simulation.server()
    simulation.run([server], in_flight=3)
    assert server.kept == [3, 3]  # at the beginning, as an earlier scan may have had more, and at the end


def test_a_failure_of_the_callers_requests_is_the_callers(simulation: Simulation) -> None:
    server = simulation.server()
    pump = simulation.pump([server], 20)

    def broken() -> object:
        yield from ()
        raise KeyError("the scan")

    pump._backlog._requests = broken()  # type: ignore[assignment]
    pump.run()
    [said] = simulation.ready
    assert isinstance(said, KeyError)


def test_an_error_cancels_what_is_in_flight(simulation: Simulation) -> None:
    server = simulation.server(lambda request: error("INVALID_ARGUMENT") if request.index == 0 else None)
    with pytest.raises(TileError):
        simulation.run([server])
    assert server.cancelled == [1]
    assert server.released == [(0, False), (1, False)]
