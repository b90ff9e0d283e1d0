"""Loops in virtual time, against a server of one place and known service times: what queueing theory says comes out."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxtile.load.arrivals import Closed, Demand, Open, arrival_times
from voxtile.load.loop import Loop, Sample, Visit
from voxtile.load.mix import in_turn
from voxtile.load.plan import Load, rising, summary
from voxtile.load.result import LoadResult, result_of
from voxtile.load.rising import CLOSE
from voxtile.load.server import ServerWork
from voxtile.load.table import rising_lines, verdict
from voxtile.load.target import Target


class OnePlace:
    """A crew in virtual time whose server serves one scan after the other, in the order in which they are started."""

    def __init__(self, size: int, service: Callable[[int], float]) -> None:
        self.size = size
        self.time = self.free_at = 0.0
        self.started = 0
        self._service = service
        self._coming: list[tuple[float, int, Sample]] = []

    def now(self) -> float:
        return self.time

    def start(self, visit: Visit) -> None:
        assert len(self._coming) < self.size, "more scans than clients"
        assert visit.arrived <= self.time, "a scan began before it came"
        self.free_at = max(self.free_at, self.time) + self._service(self.started)
        sample = Sample(visit.model, visit.arrived, self.time, self.free_at)
        heapq.heappush(self._coming, (self.free_at, self.started, sample))
        self.started += 1

    def wait(self, until: float | None) -> Sample | None:
        if self._coming and (until is None or self._coming[0][0] <= until):
            self.time, _, sample = heapq.heappop(self._coming)
            return sample
        assert until is not None, "nothing will ever happen"
        self.time = until
        return None


def run(
    demand: Demand, clients: int, service: Callable[[int], float], ending: Callable[[list[Sample]], str] = lambda _: ""
) -> Loop:
    loop = Loop(demand, in_turn({"a": 0.5, "b": 0.5}), OnePlace(clients, service), ending)
    loop.run()
    return loop


def poisson(rate: float, count: int, seed: int = 1) -> Open:
    return Open(arrival_times(rate, "poisson", seed), count)


@pytest.mark.parametrize("load", [0.3, 0.7, 0.9])
def test_the_mean_wait_is_that_of_m_d_1(load: float) -> None:
    """Pollaczek and Khinchine: load / (2 (1 - load)) service times, where each takes the same time."""
    samples = run(poisson(load, 60_000), 1, lambda _: 1.0).samples
    wait = np.mean([one.seconds for one in samples]) - 1.0
    assert wait == pytest.approx(load / (2 * (1 - load)), rel=0.12)


def test_the_mean_wait_is_that_of_m_m_1() -> None:
    """Service times that are exponential wait twice as long as constant ones: load / (1 - load)."""
    times = np.random.default_rng(2).exponential(size=60_000)
    samples = run(poisson(0.6, 60_000), 10_000, lambda number: float(times[number])).samples
    assert np.mean([one.seconds for one in samples]) - 1.0 == pytest.approx(0.6 / 0.4, rel=0.12)


@settings(deadline=None)
@given(st.lists(st.floats(0, 50), min_size=1, max_size=40), st.integers(1, 5), st.floats(0.1, 5))
def test_few_clients_hide_no_waiting(times: list[float], clients: int, service: float) -> None:
    """No coordinated omission: a scan that waits for a client, and one that waits at the server, take as long."""
    few = run(Open(iter(sorted(times)), None), clients, lambda _: service).samples
    many = run(Open(iter(sorted(times)), None), 1000, lambda _: service).samples
    assert [one.seconds for one in few] == pytest.approx([one.seconds for one in many])
    assert all(one.waited_s == 0 for one in many)
    for one in few:
        assert one.seconds >= one.waited_s >= 0


def test_one_stall_is_felt_by_all_who_come_meanwhile() -> None:
    """A server that stalls for 100 s, and else takes 0.1 s: scans that came every second waited 99 s, 98.1 s, …"""
    samples = run(Open(arrival_times(1.0, "even", 0), 60), 1, lambda number: 100.0 if number == 0 else 0.1).samples
    assert [one.seconds for one in samples[:3]] == pytest.approx([100, 99.1, 98.2])
    assert np.median([one.seconds for one in samples]) > 60
    closed = run(Closed(60), 1, lambda number: 100.0 if number == 0 else 0.1).samples
    assert np.median([one.seconds for one in closed]) == pytest.approx(0.1)  # why a closed loop cannot tell it


def test_a_rate_above_the_capacity_has_a_queue_that_grows() -> None:
    samples = run(Open(arrival_times(2.0, "even", 0), 50), 3, lambda _: 1.0).samples
    assert [one.seconds for one in samples] == pytest.approx([1 + 0.5 * number for number in range(50)])


def test_a_rate_below_the_capacity_has_no_queue() -> None:
    samples = run(Open(arrival_times(0.5, "even", 0), 50), 3, lambda _: 1.0).samples
    assert [one.seconds for one in samples] == pytest.approx([1.0] * 50)


@pytest.mark.parametrize("clients", [1, 2, 7])
def test_clients_of_a_closed_loop_share_the_server(clients: int) -> None:
    """N clients of one place: each scan takes N service times, and the server never rests."""
    samples = run(Closed(70), clients, lambda _: 0.5).samples
    assert [one.seconds for one in samples[clients:]] == pytest.approx([0.5 * clients] * (70 - clients))
    assert max(one.finished for one in samples) == pytest.approx(35)
    assert all(one.waited_s == 0 for one in samples)


@settings(deadline=None)
@given(
    st.lists(st.floats(0, 50), max_size=40),
    st.lists(st.floats(0.01, 5), min_size=40, max_size=40),
    st.integers(1, 6),
)
def test_every_scan_that_comes_is_done_once(times: list[float], service: list[float], clients: int) -> None:
    loop = run(Open(iter(sorted(times)), None), clients, service.__getitem__)
    assert sorted(one.arrived for one in loop.samples) == sorted(times)
    assert (loop.running, len(loop.waiting)) == (0, 0)
    assert [one.finished for one in loop.samples] == sorted(one.finished for one in loop.samples)
    models = [one.model for one in loop.samples]
    assert abs(models.count("a") - models.count("b")) <= 1


def test_a_load_that_ends_early_finishes_what_it_has_begun_and_begins_nothing() -> None:
    loop = run(
        Open(arrival_times(10.0, "even", 0), 100), 4, lambda _: 1.0, lambda some: "enough" if len(some) == 5 else ""
    )
    assert loop.ended_early == "enough"
    assert len(loop.samples) == 5 + 3  # the client that became free began no other
    assert loop.running == 0


def test_progress_counts_scans() -> None:
    seen: list[int] = []
    Loop(Closed(4), itertools.repeat("a"), OnePlace(2, lambda _: 1.0)).run(seen.append)
    assert seen == [1, 2, 3, 4]


# The search, on the same server -------------------------------------------------------------------------------


def measured(load: Load, target: Target) -> LoadResult:
    """A load on a server that does one scan a second, measured in virtual time."""
    loop = Loop(load.demand(), itertools.repeat("a"), OnePlace(load.most_clients, lambda _: 1.0))
    loop.run()
    pattern: Literal["closed", "poisson", "even"] = "closed" if load.rate is None else load.pattern
    result = result_of(loop.samples, {"a": 1.0}, pattern, load.rate, load.most_clients, ServerWork())
    return result.model_copy(update={"held": target.kept([one.seconds for one in loop.samples])})


def test_clients_rise_until_the_percentile_breaks() -> None:
    """N clients of one place take N seconds a scan: eight take 8 s, and nine are too many for 8.5 s."""
    target = Target(95, 8.5)
    results = list(rising(partial(measured, target=target), Load(), target))
    assert [one.clients for one in results] == [1, 2, 4, 8, 16, 12, 10, 9]
    found = summary(results, target, interrupted=False)
    assert found.held is not None
    assert found.lost is not None
    assert (found.steps[found.held].clients, found.steps[found.lost].clients) == (8, 9)
    assert verdict(found) == "p95<8.5 s: kept at 8 clients, with 3600 scans done an hour; it is lost at 9 clients"
    assert len(list(rising_lines(found))) == 1 + 8 + 2


@pytest.mark.parametrize("first", [0.01, 0.3, 0.9])
def test_an_even_rate_rises_to_the_capacity(first: float) -> None:
    """Up to one scan a second none waits; the steps are long enough to see the queue of a rate a fifth above it."""
    target = Target(95, 5.0)
    results = list(rising(partial(measured, target=target), Load(rate=first, pattern="even"), target))
    found = summary(results, target, interrupted=False)
    assert found.held is not None
    assert found.lost is not None
    held, lost = (results[number].rate_per_hour or 0.0 for number in (found.held, found.lost))
    assert 3600 / CLOSE <= held <= 1.21 * 3600
    assert 3600 < lost <= held * CLOSE * (1 + 1e-6)


def test_a_rate_of_poisson_breaks_below_the_capacity() -> None:
    target = Target(95, 5.0)
    results = list(rising(partial(measured, target=target), Load(rate=0.1, scans=4000), target))
    found = summary(results, target, interrupted=False)
    assert found.lost is not None
    assert 0.6 * 3600 < (results[found.lost].rate_per_hour or 0.0) < 3600


def test_latencies_add_up_whatever_the_server_says() -> None:
    loop = Loop(poisson(2.0, 50), itertools.repeat("a"), OnePlace(3, lambda _: 0.7))
    loop.run()
    for own in (None, 0.0, 0.3, 99.0):
        latency = result_of(loop.samples, {"a": 1.0}, "poisson", 2.0, 3, ServerWork(own_seconds=own)).latency
        assert latency is not None
        parts = (latency.waiting, latency.client, latency.compute or 0.0, latency.queue)
        assert sum(parts) == pytest.approx(latency.mean)
        assert min(parts) >= -1e-9
    assert latency.waiting == pytest.approx(np.mean([one.waited_s for one in loop.samples]))
