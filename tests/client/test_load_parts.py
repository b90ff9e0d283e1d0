"""The parts of a load test that need no time: arrivals, shares, percentiles, targets, the search, units."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, kstest

from voxtile.errors import InputError
from voxtile.load.arrivals import Closed, Open, arrival_times
from voxtile.load.mix import in_turn, shares_of
from voxtile.load.percentiles import CONFIDENCE, PERCENTILES, interval_ranks, least_samples, percentiles_of
from voxtile.load.rising import CLOSE, levels
from voxtile.load.target import Target, target_of
from voxtile.load.units import in_words, rate_of, seconds_of

LATENCIES = st.lists(st.floats(0.001, 1000), min_size=1, max_size=150)

# Percentiles ---------------------------------------------------------------------------------------------------


@given(LATENCIES)
def test_percentiles_are_numpys_and_lie_in_their_intervals(seconds: list[float]) -> None:
    for one in percentiles_of(seconds):
        assert one.seconds == pytest.approx(np.percentile(seconds, one.p))
        for bound in (one.low, one.high):
            assert bound is None or bound in seconds
        assert one.low is None or one.low <= one.seconds * (1 + 1e-9)
        assert one.high is None or one.high >= one.seconds * (1 - 1e-9)


@given(st.integers(1, 400))
def test_a_percentile_is_told_only_where_samples_lie_above_it(count: int) -> None:
    told = [one.p for one in percentiles_of([float(n) for n in range(count)])]
    assert told == [p for p in PERCENTILES if count * (100 - p) >= 100]


def test_no_p99_out_of_twenty() -> None:
    assert [one.p for one in percentiles_of([1.0] * 20)] == [50, 90, 95]
    assert least_samples(99) == 100


@given(st.integers(1, 600), st.integers(1, 99))
def test_the_interval_is_that_of_the_binomial_distribution(count: int, p: int) -> None:
    lower, upper = interval_ranks(count, p)
    below = binom(count, p / 100).cdf
    tail = (1 - CONFIDENCE) / 2
    first, last = -1 if lower is None else lower, count if upper is None else upper
    assert first == -1 or below(first) <= tail + 1e-9
    assert below(first + 1) > tail - 1e-9  # a sample nearer would be wrong too often
    assert last == count or below(last) >= 1 - tail - 1e-9
    assert last == 0 or below(last - 1) < 1 - tail + 1e-9


def test_the_interval_holds_the_percentile_as_often_as_it_says() -> None:
    generator, truth = np.random.default_rng(3), -np.log(0.1)  # the p90 of an exponential distribution
    inside = 0
    for _ in range(400):
        (p90,) = (one for one in percentiles_of(generator.exponential(size=200).tolist()) if one.p == 90)
        assert p90.low is not None
        assert p90.high is not None
        inside += p90.low <= truth <= p90.high
    assert inside >= 0.93 * 400


# Targets -------------------------------------------------------------------------------------------------------


@given(LATENCIES, st.integers(1, 99), st.floats(0.01, 900), st.data())
def test_a_load_that_is_lost_is_never_kept(seconds: list[float], p: int, limit: float, data: st.DataObject) -> None:
    target = Target(p, limit)
    seen = data.draw(st.integers(0, len(seconds)))
    if target.lost(seconds[:seen], planned=len(seconds)):
        assert not target.kept(seconds)
        assert not target.kept([*seconds[:seen], *[0.0] * (len(seconds) - seen)])


def test_a_load_is_lost_as_soon_as_it_can_be_known() -> None:
    target = Target(95, 1.0)
    assert not target.lost([2.0], planned=20)  # the p95 of twenty lies between the two longest
    assert target.lost([2.0, 2.0], planned=20)
    assert target.kept([0.5] * 20)
    assert not target.kept([])


def test_a_target_is_read_as_it_is_written() -> None:
    assert target_of("p95<30s", "--until") == Target(95, 30.0) == target_of(" p95 < 30 s ", "--until")
    assert target_of("p50<500ms", "--until") == Target(50, 0.5)
    assert target_of(str(Target(99, 1.5)), "--until") == Target(99, 1.5)


@pytest.mark.parametrize(
    "text", ["", "p95", "p95>30s", "p0<3s", "p100<3s", "95<3s", "p95<0s", "p95<3", "p95<-3s", "p95<nans"]
)
def test_what_is_no_target_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--until: expected"):
        target_of(text, "--until")


# Units ---------------------------------------------------------------------------------------------------------


def test_units() -> None:
    assert [seconds_of(text, "x") for text in ("500ms", "1.5s", "2min", " 1 h ")] == [0.5, 1.5, 120, 3600]
    assert [rate_of(text, "x") * 3600 for text in ("60/h", "1/min", "0.5 / s")] == [60, 60, 1800]
    assert [in_words(seconds) for seconds in (0.01234, 12.34, 1234.0)] == ["0.0123 s", "12.3 s", "1,234 s"]


@pytest.mark.parametrize("text", ["", "s", "3", "3 d", "0s", "-1s", "1e3s", "inf s", "999h"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--duration: expected"):
        seconds_of(text, "--duration")


@pytest.mark.parametrize("text", ["", "60", "0/h", "-5/h", "60/d", "60 per h", "9999/s", "0.0001/h", "/h"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--rate: expected"):
        rate_of(text, "--rate")


# Arrivals ------------------------------------------------------------------------------------------------------


def test_even_arrivals_are_the_same_time_apart() -> None:
    assert list(itertools.islice(arrival_times(4.0, "even", 0), 5)) == [0, 0.25, 0.5, 0.75, 1.0]


def test_poisson_arrivals_have_exponential_intervals_of_the_rates_mean() -> None:
    times = list(itertools.islice(arrival_times(0.25, "poisson", 5), 20_000))
    intervals = np.diff([0.0, *times])
    assert np.mean(intervals) == pytest.approx(4.0, rel=0.03)
    assert kstest(intervals, "expon", (0, 4.0)).pvalue > 0.01
    assert times == list(itertools.islice(arrival_times(0.25, "poisson", 5), 20_000))
    assert times[:9] != list(itertools.islice(arrival_times(0.25, "poisson", 6), 9))


@given(st.lists(st.floats(0, 100), max_size=30), st.lists(st.floats(0, 120), max_size=30), st.integers(0, 30))
def test_an_open_loop_gives_each_arrival_once_and_none_too_soon(
    times: list[float], asked: list[float], count: int
) -> None:
    demand, taken = Open(iter(sorted(times)), count, duration_s=80.0), list[float]()
    expected = [time for time in sorted(times)[:count] if time < 80]
    for now in [*sorted(asked), 1000.0]:
        some = demand.take(now, 0)
        assert all(time <= now for time in some)
        taken += some
        assert demand.next() == next((time for time in expected if time > now), None)
    assert taken == expected


def test_a_closed_loop_asks_for_as_many_as_clients_are_free() -> None:
    demand = Closed(5)
    assert demand.next() is None
    assert [demand.take(0.0, 2), demand.take(1.5, 2), demand.take(2.0, 2), demand.take(9.0, 2)] == [
        [0.0, 0.0],
        [1.5, 1.5],
        [2.0],
        [],
    ]
    assert Closed(None, 10.0).take(10.0, 3) == []
    assert Closed(None, 10.0).take(9.9, 3) == [9.9] * 3


# Several models ------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(0, 200))
def test_no_model_is_asked_more_than_once_too_often(weights: list[int], count: int) -> None:
    shares = shares_of([f"m{number}={weight}" for number, weight in enumerate(weights)], "--model")
    assert sum(shares.values()) == pytest.approx(1)
    names = list(itertools.islice(in_turn(shares), count))
    for name, share in shares.items():
        assert names.count(name) <= share * count + 1 + 1e-9
    whole = sum(weights) * 3
    every = list(itertools.islice(in_turn(shares), whole))
    assert [every.count(name) for name in shares] == [3 * weight for weight in weights]


def test_a_name_alone_has_one_share() -> None:
    assert shares_of(["a", "b=3"], "--model") == {"a": 0.25, "b": 0.75}


@pytest.mark.parametrize(
    "texts", [[], ["a", "a"], ["a=2", "a=3"], ["a=0"], ["a=-1"], ["a=x"], ["a="], ["a=inf"], ["a=nan"]]
)
def test_what_are_no_shares_is_refused(texts: list[str]) -> None:
    with pytest.raises(InputError, match="--model: expected"):
        shares_of(texts, "--model")


# The search ----------------------------------------------------------------------------------------------------


def searched(first: float, most: float, capacity: float, whole: bool) -> list[tuple[float, bool]]:
    search, tried = levels(first, most, whole=whole), list[tuple[float, bool]]()
    level = next(search)
    while True:
        tried.append((level, level <= capacity))
        try:
            level = search.send(level <= capacity)
        except StopIteration:
            return tried


@given(st.floats(0.001, 10), st.floats(1, 1000))
def test_the_search_ends_close_to_the_capacity(first: float, times: float) -> None:
    tried = searched(first, first * 2**20, first * times, whole=False)
    held = max(level for level, kept in tried if kept)
    lost = min(level for level, kept in tried if not kept)
    assert held <= first * times < lost <= held * CLOSE
    assert len(tried) <= 2 + np.log2(times) + 4


@given(st.integers(1, 9), st.integers(1, 64))
def test_the_search_for_clients_is_exact_below_ten_and_close_above(first: int, capacity: int) -> None:
    tried = searched(first, 64, capacity, whole=True)
    assert all(level == int(level) for level, _ in tried)
    held = max((level for level, kept in tried if kept), default=0)
    lost = min((level for level, kept in tried if not kept), default=None)
    if first > capacity:
        assert tried == [(first, False)]
    elif capacity == 64:
        assert (held, lost) == (64, None)
    else:
        assert lost is not None
        assert held <= capacity < lost
        assert lost - held <= max(1, held * 0.1 + 1e-9)
