"""Times of an engine and of its layers, as its own profiler reports them. Knows no engine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """One step of an engine's own plan.

    Attributes:
        name: the engine's name of it.
        operator: the engine's kind of operator.
        seconds: of one run, the mean.
    """

    name: str
    operator: str
    seconds: float


@dataclass(frozen=True)
class Timed:
    """How long an engine takes.

    Attributes:
        plain: seconds of a run as it is served, the mean.
        profiled: seconds of a run with the profiler, the mean.
        layers: in any order.
    """

    plain: float
    profiled: float
    layers: tuple[Layer, ...]


def timed_runs(run: Callable[[], object], runs: int) -> list[float]:
    """Seconds of each of `runs` runs, after one that is not counted."""
    run()
    seconds = []
    for _ in range(runs):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return seconds


def mean(seconds: Sequence[float]) -> float:
    """The mean, so that the layers of all runs add up to at most it."""
    return statistics.fmean(seconds)
