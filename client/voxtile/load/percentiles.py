"""Percentiles of latencies with what a sample of their size can say of them. Knows nothing of scans or servers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel

PERCENTILES = (50, 90, 95, 99)
"""The percentiles that are told; each only where there are enough samples for it."""

CONFIDENCE = 0.95
"""How surely the interval of a percentile holds it: the usual figure."""


class Percentile(BaseModel):
    """A percentile of latencies.

    Attributes:
        p: of 100 scans, so many take at most `seconds`.
        seconds: the percentile of the samples, as numpy computes it.
        low: with 95 % confidence the percentile of all scans lies at or above this; None where too few were measured
            to say it.
        high: and at or below this; None where too few were measured to say it.
    """

    p: int
    seconds: float
    low: float | None
    high: float | None


def least_samples(p: int) -> int:
    """Returns how many samples it takes to tell the percentile `p`: at least one of them is to lie above it."""
    return math.ceil(100 / (100 - p))


def percentiles_of(seconds: Sequence[float], wanted: Sequence[int] = PERCENTILES) -> list[Percentile]:
    """Returns those of the percentiles that there are enough samples for, in rising order."""
    ordered = sorted(seconds)
    return [percentile_of(ordered, p) for p in sorted(set(wanted)) if len(ordered) >= least_samples(p)]


def percentile_of(ordered: Sequence[float], p: int) -> Percentile:
    """Returns one percentile of samples in rising order, with the interval that order statistics give."""
    lower, upper = interval_ranks(len(ordered), p)
    return Percentile(
        p=p,
        seconds=float(np.percentile(ordered, p)),
        low=None if lower is None else ordered[lower],
        high=None if upper is None else ordered[upper],
    )


def interval_ranks(count: int, p: int) -> tuple[int | None, int | None]:
    """The samples, counted from 0 in rising order, between which the percentile `p` lies with 95 % confidence.

    The number of samples below the percentile is binomial, whatever the distribution of the samples is, if they are
    independent. A side on which even the outermost sample does not bound the percentile is None.
    """
    below = _binomial_cdf(count, p / 100)  # below[k]: the probability that at most k samples lie below
    tail = (1 - CONFIDENCE) / 2
    lower = int(np.searchsorted(below, tail, side="right")) - 1  # the last k with below[k] <= tail
    upper = int(np.searchsorted(below, 1 - tail, side="left"))  # the first k with below[k] >= 1 - tail
    return (lower if lower >= 0 else None), (upper if upper < count else None)


def _binomial_cdf(count: int, probability: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """[count + 1] the probability of at most k successes among `count`; by logarithms, for no power to vanish."""
    factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count + 1)))])
    k = np.arange(count + 1)
    ways = factorials[count] - factorials - factorials[::-1]
    return np.cumsum(np.exp(ways + k * math.log(probability) + (count - k) * math.log1p(-probability)))
