"""Keeps the state of one server while requests are sent to it: what is in flight, and whether it can be used.

Knows nothing of what is sent or of what an error means.
"""

from __future__ import annotations

from voxtile.triton.endpoint import Call, Endpoint
from voxtile.triton.retry import pause_s
from voxtile.triton.window import Window


class Lane:
    """A server in use.

    Args:
        endpoint: the server.
        max_in_flight: the most requests in flight to it.
    """

    def __init__(self, endpoint: Endpoint, max_in_flight: int) -> None:
        self.endpoint = endpoint
        self.window = Window(max_in_flight)
        self.calls: set[Call] = set()
        self.failures = 0
        self.up = True
        self.probing = False
        self.asleep_until = 0.0
        self.last_error = ""

    @property
    def room(self) -> bool:
        """Whether the server can take another request now."""
        return self.up and len(self.calls) < self.window.size

    @property
    def load(self) -> float:
        """The share of its window that is in flight."""
        return len(self.calls) / self.window.size

    def due(self, now: float) -> bool:
        """Whether a lost server should be asked now if it is back."""
        return not self.up and not self.probing and now >= self.asleep_until

    def answered(self, now: float) -> None:
        """Counts an answer."""
        self.failures = 0
        self.window.answered(now)

    def fail(self, reason: str, now: float) -> None:
        """Takes the server out of use for a while."""
        self.up = False
        self.failures += 1
        self.last_error = reason
        self.asleep_until = now + pause_s(self.failures)
