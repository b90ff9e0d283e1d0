"""Lets scans through as they arrive and clients are free, and notes what each took.

The latency of a scan counts from its arrival: one that has to wait for a client is no faster for it. The clock belongs
to the crew. Knows nothing of servers or threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from voxtile.load.arrivals import Demand


@dataclass(frozen=True)
class Visit:
    """A scan that has arrived.

    Attributes:
        model: the model that it is for.
        arrived: seconds after the load began.
    """

    model: str
    arrived: float


@dataclass(frozen=True)
class Sample:
    """What became of a scan.

    Attributes:
        model: the model that it was for.
        arrived: seconds after the load began.
        started: when a client began with it.
        finished: when its mask was there, or when it had failed.
        scores_s: seconds that its client waited for scores: for the server and what lies between.
        tiles: tiles that the server computed for it.
        retries: requests that were sent again.
        error: why it failed; None where it did not.
    """

    model: str
    arrived: float
    started: float
    finished: float
    scores_s: float = 0.0
    tiles: int = 0
    retries: int = 0
    error: Exception | None = None

    @property
    def seconds(self) -> float:
        """The latency: from the arrival to the mask."""
        return self.finished - self.arrived

    @property
    def waited_s(self) -> float:
        """From the arrival until a client was free."""
        return self.started - self.arrived


class Crew(Protocol):
    """Clients that segment scans, and the clock that they work by."""

    @property
    def size(self) -> int:
        """Scans that they can work on at once."""

    def now(self) -> float:
        """Seconds since the load began."""

    def start(self, visit: Visit) -> None:
        """Gives a scan to a client that is free."""

    def wait(self, until: float | None) -> Sample | None:
        """Waits for a scan to be done; returns None where none is at the time `until`."""


Ending = Callable[[list[Sample]], str]
"""Says from the samples so far why the load is to end early; empty where it is not."""


class Loop:
    """One load, from its first arrival to its last scan.

    Args:
        demand: when scans arrive.
        models: the model of each scan, in the order of arrivals.
        crew: what segments them.
        ending: ends the load early; scans in progress are still finished.

    Attributes:
        samples: what became of each scan, in the order in which they were done.
        running: scans in progress.
        waiting: scans that have arrived and wait for a client.
        ended_early: why it ended early; empty where it did not.
    """

    def __init__(self, demand: Demand, models: Iterator[str], crew: Crew, ending: Ending = lambda _: "") -> None:
        self.samples: list[Sample] = []
        self.running = 0
        self.waiting: deque[Visit] = deque()
        self.ended_early = ""
        self._demand, self._models, self._crew, self._ending = demand, models, crew, ending

    def run(self, progress: Callable[[int], object] = lambda _: None) -> None:
        """Runs the load; `progress` is called with the number of scans done, after each."""
        while self._goes_on():
            done = self._crew.wait(None if self.ended_early else self._demand.next())
            if done is not None:
                self.running -= 1
                self.samples.append(done)
                self.ended_early = self.ended_early or self._ending(self.samples)
                progress(len(self.samples))

    def _goes_on(self) -> bool:
        """Takes in what has arrived, and starts what can be; whether there is anything left to wait for."""
        if self.ended_early:
            return self.running > 0
        free = self._crew.size - self.running - len(self.waiting)
        for arrived in self._demand.take(self._crew.now(), max(free, 0)):
            self.waiting.append(Visit(next(self._models), arrived))
        while self.waiting and self.running < self._crew.size:
            self._crew.start(self.waiting.popleft())
            self.running += 1
        return self.running > 0 or self._demand.next() is not None
