"""Finds the cases of a batch that differ much from the others in a number. Knows nothing of what the number is."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

LEAST_CASES = 8
"""Cases that have the number, at least; of fewer, one more case would change what is usual."""

LIMIT = 3.5
"""Of the modified z-score, beyond which a case is marked."""

NORMAL_MAD, NORMAL_MEAN_DEVIATION = 0.6745, 1.253314
"""What makes both scores those of a normal distribution: its MAD in standard deviations, and the standard deviation in
mean absolute deviations."""

RULE = (
    f"A number is marked where its modified z-score is beyond ±{LIMIT}: 0.6745 · (number − median) / MAD, with the "
    "median and the median absolute deviation (MAD) of all cases that have it. Where half of the cases agree and the "
    "MAD is 0, the mean absolute deviation takes its place. A mark says that a case is worth a look, not that it "
    "is wrong."
)


def outliers(values: Sequence[float | None]) -> list[bool]:
    """Whether each value lies far from the others; none does of fewer than LEAST_CASES.

    By the modified z-score of B. Iglewicz and D. Hoaglin, "How to Detect and Handle Outliers", ASQC Quality Press 1993,
    with their limit; with the mean absolute deviation where the MAD is 0.

    Args:
        values: one a case; None for a case without one.
    """
    known = [value for value in values if value is not None]
    if len(known) < LEAST_CASES:
        return [False] * len(values)
    median = statistics.median(known)
    apart = [abs(value - median) for value in known]
    unit = statistics.median(apart) / NORMAL_MAD or statistics.fmean(apart) * NORMAL_MEAN_DEVIATION
    return [value is not None and unit > 0 and abs(value - median) > LIMIT * unit for value in values]
