"""Decides how many requests may be in flight to one server.

The window grows while more requests in flight bring more answers a second, stays when they do not, and halves when the
server's queue is full, to grow again from there (additive increase, multiplicative decrease). Knows nothing of
requests: it only counts them.
"""

from __future__ import annotations

GAIN = 1.03
"""A larger window must raise the throughput by this factor; otherwise the window stops growing."""


class Window:
    """The window of one server.

    Args:
        limit: the most requests it ever allows; at least 1 is allowed.
        start: the requests that it allows at first.

    Attributes:
        size: the requests that it allows now.
    """

    def __init__(self, limit: int, start: int = 2) -> None:
        self.limit = max(limit, 1)
        self.size = min(start, self.limit)
        self._best = 0.0
        self._grow = True
        self._answers = 0
        self._since: float | None = None

    def sent(self, now: float) -> None:
        """Counts a request that was sent at the time `now`, in seconds."""
        if self._since is None:
            self._since = now

    def answered(self, now: float) -> None:
        """Counts an answer; after a round of twice as many answers as the window's size, decides whether to grow."""
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
        """Halves the window, because the server's queue was full. It grows again with the answers that follow.

        What was measured before is forgotten: the server is another one under this load.
        """
        self.size = max(self.size // 2, 1)
        self._grow = True
        self._best = 0.0
        self._answers, self._since = 0, None
