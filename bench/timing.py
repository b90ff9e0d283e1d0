"""Repetitions that take turns, and what is told of them: median, spread, ratio. Knows nothing of what it times."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

Result = TypeVar("Result")


@dataclass(frozen=True)
class Spread:
    """Seconds: the median of `runs` runs, the fastest and the slowest."""

    median: float
    low: float
    high: float
    runs: int


def spread(seconds: Sequence[float]) -> Spread:
    """The spread of at least one measurement."""
    return Spread(statistics.median(seconds), min(seconds), max(seconds), len(seconds))


def ratio(baseline: float, seconds: float) -> float:
    """How many times faster than the baseline: above 1 is faster."""
    return baseline / seconds


def interleave(
    ways: Mapping[str, Callable[[], Result]],
    repetitions: int,
    budget_s: float = float("inf"),
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, list[Result]]:
    """Calls every way once, then every way again in the opposite order, and so on: what drifts hits all alike.

    The first round always runs; a later one only where the longest round so far still fits into `budget_s` seconds.
    """
    results: dict[str, list[Result]] = {name: [] for name in ways}
    begun, longest = clock(), 0.0
    for number in range(repetitions):
        start = clock()
        if number and start - begun + longest > budget_s:
            break
        for name in list(ways) if number % 2 == 0 else reversed(list(ways)):
            results[name].append(ways[name]())
        longest = max(longest, clock() - start)
    return results


def timed(work: Callable[[], object]) -> Callable[[], float]:
    """A function that does `work` and returns its wall-clock seconds."""

    def run() -> float:
        begun = time.perf_counter()
        work()
        return time.perf_counter() - begun

    return run
