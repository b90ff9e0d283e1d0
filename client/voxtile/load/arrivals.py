"""When scans come: at a rate whatever the server does (an open loop), or one after the other (a closed loop).

Knows nothing of clocks: it is told the time, in seconds since the load began.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from typing import Literal, Protocol

Pattern = Literal["poisson", "even"]


class Demand(Protocol):
    """What asks for scans."""

    def take(self, now: float, free: int) -> list[float]:
        """The arrivals of scans that have come by `now` and were not taken yet; `free` clients have nothing to do."""

    def next(self) -> float | None:
        """When the next scan comes by itself; None where none does."""


class Closed:
    """Each client asks for its next scan as soon as it has the mask of the last: a scan arrives when it begins.

    Args:
        count: scans in all; None for no limit.
        duration_s: no scan begins after so many seconds.
    """

    def __init__(self, count: int | None, duration_s: float = math.inf) -> None:
        self._left = math.inf if count is None else count
        self._duration_s = duration_s

    def take(self, now: float, free: int) -> list[float]:
        if now >= self._duration_s:
            return []
        taken = int(min(free, self._left))
        self._left -= taken
        return [now] * taken

    def next(self) -> float | None:
        return None


class Open:
    """Scans come at times that are fixed beforehand: a server that is slow is asked no less for it.

    Args:
        times: when, in rising order.
        count: scans in all; None for no limit.
        duration_s: no scan comes after so many seconds.
    """

    def __init__(self, times: Iterator[float], count: int | None, duration_s: float = math.inf) -> None:
        self._times = itertools.takewhile(lambda time: time < duration_s, itertools.islice(times, count))
        self._next = next(self._times, None)

    def take(self, now: float, free: int) -> list[float]:
        taken = []
        while self._next is not None and self._next <= now:
            taken.append(self._next)
            self._next = next(self._times, None)
        return taken

    def next(self) -> float | None:
        return self._next


def arrival_times(rate: float, pattern: Pattern, seed: int) -> Iterator[float]:
    """Yields times of arrivals without end, in seconds.

    Args:
        rate: arrivals a second, on average.
        pattern: `poisson`: independent of each other, as patients come; `even`: always the same time apart.
        seed: the same one gives the same times.
    """
    if pattern == "even":
        yield from (number / rate for number in itertools.count())
    intervals, now = random.Random(seed), 0.0
    while True:
        now += intervals.expovariate(rate)
        yield now
