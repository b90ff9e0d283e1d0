"""How hard a load presses, and the search for the highest that keeps a target. Knows nothing of how one is measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from voxtile.errors import InputError
from voxtile.load.arrivals import Closed, Demand, Open, Pattern, arrival_times
from voxtile.load.result import LoadResult, LoadTestResult
from voxtile.load.rising import levels
from voxtile.load.target import Target
from voxtile.load.units import in_words
from voxtile.options import check_count

DEFAULT_SCANS = 8
CLOSED_CLIENTS, OPEN_CLIENTS = 2, 16
"""Clients where nothing else is said; at a rate they are only a limit, for each scan in progress takes memory."""

MOST_CLIENTS = 64
"""A search for the highest load ends here: more clients than that on one machine measure the machine."""

MOST_TIMES = 1024
"""And at a rate after ten doublings: whoever begins so low learns nothing from what follows."""

LIMITS_LONG = 4
"""A step at a rate lasts at least so many times the target's limit, else a burst of scans would be over before its
queue is longer than the limit. With four, a rate a quarter above what the server can do has the last scan wait for the
limit: scans that come within T, and take T + T/4, have the last one wait T/4."""


@dataclass(frozen=True)
class Load:
    """How hard to press.

    Attributes:
        clients: the most scans in progress at once; None for 2, and for 16 at a rate.
        rate: scans that come in a second, whatever the server does; None for clients that ask one after the other.
        pattern: how scans come at a rate.
        seed: of the arrivals; the same one gives the same times.
        scans: scans in all; None for 8, or as many as `duration_s` has room for.
        duration_s: no scan is asked for after so many seconds; None for no limit.

    Raises:
        InputError: a number that no load could have.
    """

    clients: int | None = None
    rate: float | None = None
    pattern: Pattern = "poisson"
    seed: int = 0
    scans: int | None = None
    duration_s: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("clients", self.clients), ("scans", self.scans)):
            if value is not None:
                check_count(name, value, least=1)
        if self.rate is not None and (first := next(self._arrivals())) >= (self.duration_s or math.inf):
            raise InputError(
                f"--duration: expected more than {in_words(first)}, after which the first scan comes at this rate, "
                f"found {in_words(self.duration_s or 0)}; with it nothing would be measured"
            )

    @property
    def most_clients(self) -> int:
        return self.clients or (CLOSED_CLIENTS if self.rate is None else OPEN_CLIENTS)

    @property
    def count(self) -> int | None:
        """Scans in all; None where only time decides."""
        return self.scans or (None if self.duration_s else DEFAULT_SCANS)

    def demand(self) -> Demand:
        duration_s = self.duration_s or math.inf
        if self.rate is None:
            return Closed(self.count, duration_s)
        return Open(self._arrivals(), self.count, duration_s)

    def _arrivals(self) -> Iterator[float]:
        """When scans come at the rate; see `arrival_times`."""
        return arrival_times(self.rate or math.inf, self.pattern, self.seed)


def check_rising(load: Load, target: Target) -> None:
    """Raises InputError for a load that cannot tell the target's percentile."""
    if load.duration_s is not None:
        raise InputError("--until: expected --scans to say how long a step is, found --duration; leave it out")
    if load.scans is not None and load.scans < target.least_scans:
        raise InputError(f"--until p{target.p}: expected at least {target.least_scans} --scans, found {load.scans}")


def long_enough(load: Load, target: Target) -> Load:
    """The load with as many scans as it takes to tell the target, and at a rate to have its queue grow."""
    growing = 0 if load.rate is None else math.ceil(LIMITS_LONG * load.rate * target.limit_s)
    return replace(load, scans=max(load.scans or 0, target.least_scans, growing))


def rising(measure: Callable[[Load], LoadResult], load: Load, target: Target) -> Iterator[LoadResult]:
    """Yields the results of rising loads until the target is lost, then of loads between, until the highest is known.

    Args:
        measure: measures a load, and says whether it kept the target.
        load: where to begin: its clients (1 if none are given), or its rate.
        target: what the load has to keep.

    Raises:
        InputError: a load is too short to tell the target's percentile.
    """
    check_rising(load, target)
    whole = load.rate is None
    first, most = (load.clients or 1, MOST_CLIENTS) if load.rate is None else (load.rate, load.rate * MOST_TIMES)
    search = levels(first, max(first, most), whole=whole)
    level: float | None = next(search)
    while level is not None:
        step = replace(load, clients=int(level)) if whole else replace(load, rate=level)
        result = measure(long_enough(step, target))
        yield result
        try:
            level = search.send(bool(result.held))
        except StopIteration:
            level = None


def summary(results: Sequence[LoadResult], target: Target, *, interrupted: bool) -> LoadTestResult:
    """Returns what rising loads say of the target."""
    height = [one.rate_per_hour or one.clients for one in results]
    held = [number for number, one in enumerate(results) if one.held]
    lost = [number for number, one in enumerate(results) if one.held is False]
    return LoadTestResult(
        target=str(target),
        held=max(held, key=height.__getitem__, default=None),
        lost=min(lost, key=height.__getitem__, default=None),
        interrupted=interrupted,
        steps=list(results),
    )
