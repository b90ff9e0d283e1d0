"""Limits on retries: pauses that grow, and how often one request may fail. Knows nothing of what a request holds."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from dataclasses import dataclass

from voxtile.errors import InputError
from voxtile.triton.faults import Remedy

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 1.0


@dataclass(frozen=True)
class RetryPolicy:
    """Retry limits.

    Attributes:
        no_response_timeout_s: seconds without a good answer from any server before the scan is given up.
        tries: how often one request may fail at one server.

    Raises:
        InputError: a limit that no request could keep.
    """

    no_response_timeout_s: float = 300.0
    tries: int = 4

    def __post_init__(self) -> None:
        if math.isnan(self.no_response_timeout_s) or self.no_response_timeout_s <= 0 or self.tries < 1:
            raise InputError(
                "expected --no-response-timeout above 0 seconds and at least 1 try, "
                f"found {self.no_response_timeout_s:g} seconds and {self.tries} tries"
            )


def pause_s(failures: int) -> float:
    """Seconds to wait after `failures` failures in a row: doubled each time up to a limit, with jitter."""
    pause: float = min(FIRST_PAUSE_S * 2 ** min(failures, 10), LONGEST_PAUSE_S)
    return pause * random.uniform(0.5, 1.0)


class Attempts:
    """How often each request has failed at each server.

    Args:
        tries: how often one request may fail at one server.
    """

    def __init__(self, tries: int) -> None:
        self._tries = tries
        self._failed: defaultdict[int, Counter[int]] = defaultdict(Counter)
        self._avoided: defaultdict[int, Counter[int]] = defaultdict(Counter)
        self._closed: defaultdict[int, set[int]] = defaultdict(set)

    def failed(self, request: int, server: int, remedy: Remedy) -> None:
        """Counts a failure of `request` at `server`."""
        self._failed[request][server] += 1
        if remedy is not Remedy.RETRY_HERE:
            self._avoided[request][server] += 1
        if remedy is Remedy.GIVE_UP or self._failed[request][server] >= self._tries:
            self._closed[request].add(server)

    def reluctance(self, request: int, server: int) -> int | None:
        """How often the server has failed at the request; None where it must not have it again."""
        return None if server in self._closed[request] else self._avoided[request][server]

    def failures(self, request: int) -> int:
        """How often the request has failed, at all servers together."""
        return self._failed[request].total()

    def forget(self, request: int) -> None:
        """The request is answered."""
        for kept in (self._failed, self._avoided, self._closed):
            kept.pop(request, None)
