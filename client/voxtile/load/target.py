"""A limit for a percentile of the latency, such as `p95<30s`, and whether a load keeps it. Knows nothing of servers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from voxtile.errors import InputError
from voxtile.load.percentiles import least_samples
from voxtile.load.units import in_words, seconds_of

FORM = re.compile(r"\s*p(\d{1,2})\s*<\s*(.+)")


@dataclass(frozen=True)
class Target:
    """A percentile of the latency and its limit.

    Attributes:
        p: the percentile, 1 to 99.
        limit_s: seconds that it may take at most.
    """

    p: int
    limit_s: float

    def __str__(self) -> str:
        return f"p{self.p}<{in_words(self.limit_s)}"

    @property
    def least_scans(self) -> int:
        """The scans that it takes to tell the percentile."""
        return least_samples(self.p)

    def kept(self, seconds: Sequence[float]) -> bool:
        """Whether these latencies keep the limit; none at all do not."""
        return len(seconds) > 0 and float(np.percentile(seconds, self.p)) < self.limit_s

    def lost(self, seconds: Sequence[float], planned: int) -> bool:
        """Whether these of the `planned` latencies exceed the limit so often that the others cannot mend it."""
        exceeding = sum(one >= self.limit_s for one in seconds)
        return exceeding >= planned - math.floor((planned - 1) * self.p / 100)


def target_of(text: str, option: str) -> Target:
    """Reads a target.

    Args:
        text: such as `p95<30s`.
        option: what gave it, for the error.

    Raises:
        InputError: it is none.
    """
    found = FORM.fullmatch(text)
    if found is None or not 1 <= int(found[1]) <= 99:
        raise InputError(f"{option}: expected a percentile and its limit, such as 'p95<30s', found {text!r}")
    return Target(int(found[1]), seconds_of(found[2], option))
