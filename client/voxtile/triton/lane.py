"""Keeps the state of one server while requests are sent to it: what is in flight, and whether it can be used.

Knows nothing of what is sent or of what an error means.
"""

from __future__ import annotations

from voxtile.errors import VoxtileError
from voxtile.triton.endpoint import Call, Endpoint
from voxtile.triton.retry import pause_s
from voxtile.triton.window import Window

STRIKES = 3
"""A server that fails at so many requests in a row rests for a while, and is asked for its card."""


class Lane:
    """A server in use.

    Args:
        number: its number among the servers, from 0 on.
        endpoint: the server. It is asked before its first request, unless it is known to serve the model.
        max_in_flight: the most requests in flight to it.

    Attributes:
        answers: the good answers that it has given.
        restarted: whether it was lost last because it was away; if so, it answered with one build until then.
        final: why it cannot be used, however long one waits; None where it can, or may again.
    """

    def __init__(self, number: int, endpoint: Endpoint, max_in_flight: int) -> None:
        self.number = number
        self.endpoint = endpoint
        self.window = Window(max_in_flight)
        self.calls: set[Call] = set()
        self.answers = 0
        self.failures = 0
        self.strikes = 0
        self.up = endpoint.serves_model
        self.probing = False
        self.restarted = False
        self.asleep_until = 0.0
        self.last_error = ""
        self.final: VoxtileError | None = None
        self._slowed_at = 0.0

    def has_room(self, now: float) -> bool:
        """Whether the server can take another request now."""
        return self.up and now >= self.asleep_until and len(self.calls) < self.window.size

    @property
    def load(self) -> float:
        """The share of its window that is in flight."""
        return len(self.calls) / self.window.size

    def due(self, now: float) -> bool:
        """Whether a lost server should be asked now if it is back."""
        return not self.up and not self.probing and now >= self.asleep_until

    def sent(self, call: Call, now: float) -> None:
        """Counts a request that was sent."""
        call.sent_at = now
        self.calls.add(call)
        self.window.sent(now)

    def answered(self, now: float) -> None:
        """Counts a good answer."""
        self.answers += 1
        self.failures = self.strikes = 0
        self.window.answered(now)

    def slow_down(self, call: Call, reason: str, now: float) -> None:
        """Sends less from now on, as the server has too much to do. Requests sent before count as one."""
        self.last_error = reason
        if call.sent_at > self._slowed_at:
            self.window.rejected()
            self.failures += 1
            self.asleep_until = now + pause_s(self.failures)
            self._slowed_at = now

    def strike(self, reason: str) -> bool:
        """Counts a failure at a request; says whether the server had better rest."""
        self.last_error = reason
        self.strikes += 1
        return self.strikes >= STRIKES

    def fail(self, reason: str, now: float) -> None:
        """Takes the server out of use for a while; it is asked before it is used again."""
        self.up = False
        self.endpoint.serves_model = False
        self.failures += 1
        self.last_error = reason
        self.asleep_until = now + pause_s(self.failures)

    def back(self) -> None:
        """The server is there with the model."""
        self.up = True
        self.final = None
        self.endpoint.serves_model = True
