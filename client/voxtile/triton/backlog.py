"""Makes requests as they are needed, keeps those that must be sent again, and puts answers back into order.

Knows nothing of servers, threads or errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from numpy.typing import NDArray

from voxtile.triton.types import Request


class Backlog:
    """Requests on one side, their scores in the same order on the other.

    Args:
        requests: the requests, with indices 0, 1, 2, ….
    """

    def __init__(self, requests: Iterator[Request]) -> None:
        self._requests = requests
        self._again: list[tuple[float, int, Request]] = []
        self._waiting: dict[int, NDArray[Any]] = {}
        self._made = self._taken = 0
        self._all_made = False
        self.handed_over = 0

    @property
    def complete(self) -> bool:
        """Whether every request has been made and answered, and its scores handed over."""
        return self._all_made and self.handed_over == self._made

    @property
    def outstanding(self) -> int:
        """The requests that have been made and not been answered."""
        return self._made - self.handed_over - len(self._waiting)

    def next_retry_after(self, now: float) -> float | None:
        """The first time after `now` at which a request is to be sent again; what is overdue waits for a server."""
        return min((when for when, _, _ in self._again if when > now), default=None)

    def next(self, now: float, most: int, fits: Callable[[Request], bool] = lambda _: True) -> Request | None:
        """Returns the next request to send; None where there is none now.

        Args:
            now: the time, by the clock that `retry` is given times of.
            most: the most requests that may be made and not yet taken by the caller.
            fits: whether a request that is to be sent again can be sent now.
        """
        for entry in sorted(one for one in self._again if one[0] <= now):
            if fits(entry[2]):
                self._again.remove(entry)
                return entry[2]
        if self._all_made or self._made - self._taken >= most:
            return None
        request = next(self._requests, None)
        if request is None:
            self._all_made = True
            return None
        self._made += 1
        return request

    def retry(self, request: Request, when: float) -> None:
        """Takes back a request that is to be sent again from the time `when` on."""
        self._again.append((when, request.index, request))

    def answered(self, index: int, scores: NDArray[Any]) -> Iterator[NDArray[Any]]:
        """Takes the scores of request `index`, and yields all that are next in order."""
        self._waiting[index] = scores
        while self.handed_over in self._waiting:
            yield self._waiting.pop(self.handed_over)
            self.handed_over += 1

    def taken(self) -> None:
        """The caller has taken the scores of one more request."""
        self._taken += 1
