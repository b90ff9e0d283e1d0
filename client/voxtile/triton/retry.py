"""Limits on retries, and the pauses before a lost server is asked again. Knows nothing of servers or requests."""

from __future__ import annotations

import random
from dataclasses import dataclass

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 1.0


@dataclass(frozen=True)
class RetryPolicy:
    """Retry limits.

    Attributes:
        no_response_timeout_s: seconds without an answer from any server, while none can be reached, before the scan
            is given up.
        tries: how often one request may be refused.
    """

    no_response_timeout_s: float = 120.0
    tries: int = 4


def pause_s(failures: int) -> float:
    """Seconds before a server that has failed `failures` times is asked again: doubled each time, with jitter."""
    pause: float = min(FIRST_PAUSE_S * 2**failures, LONGEST_PAUSE_S)
    return pause * random.uniform(0.5, 1.0)
