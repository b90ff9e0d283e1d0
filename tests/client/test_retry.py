"""How often one request may fail, and for how long one waits."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxtile import InputError, RetryPolicy
from voxtile.triton import retry
from voxtile.triton.faults import Remedy
from voxtile.triton.retry import LONGEST_PAUSE_S, Attempts, pause_s

FAILING = (Remedy.RETRY_HERE, Remedy.RETRY_ELSEWHERE, Remedy.GIVE_UP)


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(FAILING)), max_size=40), st.integers(1, 5))
def test_no_server_has_a_request_more_often_than_allowed(failures: list[tuple[int, Remedy]], tries: int) -> None:
    attempts, had = Attempts(tries), [0, 0, 0]
    for server, remedy in failures:
        if attempts.reluctance(9, server) is None:
            continue
        had[server] += 1
        attempts.failed(9, server, remedy)
        closed = attempts.reluctance(9, server) is None
        assert closed == (had[server] == tries or remedy is Remedy.GIVE_UP)
    assert attempts.failures(9) == sum(had) <= 3 * tries
    assert attempts.reluctance(8, 0) == 0  # another request
    attempts.forget(9)
    assert attempts.failures(9) == 0
    assert [attempts.reluctance(9, server) for server in range(3)] == [0, 0, 0]


def test_a_server_that_failed_is_avoided_unless_it_was_not_its_fault() -> None:
    attempts = Attempts(4)
    attempts.failed(0, 1, Remedy.RETRY_ELSEWHERE)
    attempts.failed(0, 2, Remedy.RETRY_HERE)
    assert [attempts.reluctance(0, server) for server in range(3)] == [0, 1, 0]
    attempts.failed(0, 1, Remedy.RETRY_ELSEWHERE)
    assert attempts.reluctance(0, 1) == 2


@given(st.integers(0, 10_000))
def test_pauses_grow_up_to_a_limit(failures: int) -> None:
    assert 0 < pause_s(failures) <= LONGEST_PAUSE_S
    assert pause_s(failures + 5) > LONGEST_PAUSE_S / 2.1


def test_pauses_are_doubled_from_a_tenth_of_a_second_to_a_whole_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for share in (0.5, 1.0):
        monkeypatch.setattr(retry.random, "uniform", lambda least, most, share=share: least if share < 1 else most)
        found = [pause_s(failures) for failures in range(6)]
        assert found == pytest.approx([share * pause for pause in (0.1, 0.2, 0.4, 0.8, 1.0, 1.0)])


def test_servers_that_rest_do_not_all_wake_at_once() -> None:
    pauses = [pause_s(9) for _ in range(300)]
    assert 0.5 <= min(pauses) < 0.6
    assert 0.9 < max(pauses) <= 1.0


def test_the_least_and_the_usual_limits() -> None:
    least = RetryPolicy(no_response_timeout_s=0.001, tries=1)
    assert (least.no_response_timeout_s, least.tries) == (0.001, 1)
    assert RetryPolicy() == RetryPolicy(300.0, 4)


@pytest.mark.parametrize("limits", [{"tries": 0}, {"no_response_timeout_s": 0}, {"no_response_timeout_s": math.nan}])
def test_limits_that_no_request_could_keep(limits: dict[str, float]) -> None:
    with pytest.raises(InputError, match="expected --no-response-timeout above 0 seconds and at least 1 try"):
        RetryPolicy(**limits)  # type: ignore[arg-type]
