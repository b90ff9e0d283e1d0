"""How many requests may be on their way to one server at once.

The window grows while more in flight brings more answers a second, rests when it does not, and halves when the
server's queue turns a request away (additive increase, multiplicative decrease).
"""

from __future__ import annotations

GAIN = 1.03
"""A larger window has to raise the throughput by this factor to be kept."""


class Window:
    """The window of one server: `size` requests, never more than `limit`."""

    def __init__(self, limit: int, start: int = 2) -> None:
        self.limit = max(limit, 1)
        self.size = min(start, self.limit)
        self._best = 0.0
        self._grow = True
        self._answers = 0
        self._since: float | None = None

    def sent(self, now: float) -> None:
        if self._since is None:
            self._since = now

    def answered(self, now: float) -> None:
        """Takes note of an answer; at the end of a round of two windows' answers, decides whether to grow."""
        self._answers += 1
        if not self._grow or self._since is None or self._answers < 2 * self.size:
            return
        rate = self._answers / max(now - self._since, 1e-9)
        if rate > self._best * GAIN and self.size < self.limit:
            self._best = rate
            self.size += 1
        else:
            self._grow = False
        self._answers, self._since = 0, now

    def rejected(self) -> None:
        """The server's queue was full."""
        self.size = max(self.size // 2, 1)
        self._grow = False
