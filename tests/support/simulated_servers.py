"""Servers, a caller and a clock that are simulated, so that a pump's every step has an exact time and costs none.

A `Simulation` runs a pump on the test's own thread. Time moves on only when the pump waits: to the next thing that
happens, or to the end of the wait.
"""

from __future__ import annotations

import heapq
import itertools
import queue
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from tests.support.fake_triton import identity_card
from voxtile.card import Card
from voxtile.errors import ModelError
from voxtile.triton import pump, retry
from voxtile.triton.endpoint import Call
from voxtile.triton.pump import Pump
from voxtile.triton.retry import RetryPolicy
from voxtile.triton.types import Request, ServedModel, Traffic

BUILD = "the card"
VALUES = 6
"""fp32 values of a request, and of its scores."""

Answer = Callable[[Request], Any]
"""What a server does with a request: gives its scores, an exception, or None, for silence."""


def error(code: str, text: str = "") -> InferenceServerException:
    return InferenceServerException(text, f"StatusCode.{code}")


def wrong(text: str) -> ValueError:
    """An answer that turns out to be none when it is read."""
    return ValueError(text)


def right(request: Request) -> NDArray[Any]:
    return request.roi


def first(count: int, failing: Any) -> Answer:
    """Fails the first `count` requests, and answers the others."""
    left = iter(range(count))
    return lambda request: right(request) if next(left, None) is None else failing


class Server:
    """An endpoint. It bears the address server-N:8001, where N is its place among a pump's servers.

    Attributes:
        seconds: how long a request takes.
        answer: what it does with a request. May be changed at any time.
        build: its card's text; an exception where it cannot be asked. May be changed at any time.
        own: the text of the card under the version's own name; None where it has no such entry.
        entries: the entry that each request was sent to.
        sent: when it got which request.
        asked: when it was asked for its card, while it was not known to serve the model.
        released: by the index of a request, whether its memory was trusted.
        kept: how much idle memory was left to it, each time.
        cancelled: the requests that are no longer waited for.
    """

    def __init__(self, simulation: Simulation, answer: Answer, seconds: float) -> None:
        self.simulation = simulation
        self.url = ""
        self.answer = answer
        self.seconds = seconds
        self.build: str | Exception = BUILD
        self.own: str | None = None
        self.serves_model = True
        self.ruled_out = ""
        self.slot: Any = None
        self.sent: list[tuple[float, int]] = []
        self.asked: list[float] = []
        self.entries: list[str] = []
        self.released: list[tuple[int, bool]] = []
        self.kept: list[int] = []
        self.forgot = 0
        self.cancelled: list[int] = []
        self._numbers = itertools.count(1)

    @property
    def times(self) -> list[float]:
        return [when for when, _ in self.sent]

    @property
    def indices(self) -> list[int]:
        return [index for _, index in self.sent]

    def send(self, model: ServedModel, request: Request, done: Callable[[Call, Any, Any], None]) -> Call:
        call = Call(request, self.slot, next(self._numbers), model)
        call.context = SimpleNamespace(cancel=lambda: self.cancelled.append(request.index))
        self.sent.append((self.simulation.now, request.index))
        self.entries.append(model.served_as)
        said = self.answer(request)
        if said is not None:
            failed = isinstance(said, InferenceServerException)
            self.simulation.after(self.seconds, lambda: done(call, None if failed else said, said if failed else None))
        return call

    def scores(self, model: ServedModel, call: Call, result: Any) -> NDArray[Any]:
        if isinstance(result, ValueError):
            raise result
        scores: NDArray[Any] = result
        return scores

    def release(self, call: Call, *, trusted: bool) -> None:
        self.released.append((call.request.index, trusted))

    def forget_slots(self) -> None:
        self.forgot += 1

    def tidy_slots(self, keep: int) -> None:
        self.kept.append(keep)

    def model(self, name: str) -> ServedModel:
        return ServedModel(MODEL.card, "1", 4, self._text(name), entry=name)

    def card_text(self, name: str) -> str:
        if name == MODEL.card.name and not self.serves_model:
            self.asked.append(self.simulation.now)
        return self._text(name)

    def _text(self, name: str) -> str:
        if name != MODEL.card.name:
            assert name == f"{MODEL.card.name}.v1"
            if self.own is None:
                raise ModelError(f"model {name!r} is not offered")
            return self.own
        if isinstance(self.build, Exception):
            raise self.build
        return self.build


MODEL = ServedModel(Card(**identity_card()), "1", 4, BUILD)


class Simulation:
    """The clock, what is going to happen, and a caller.

    Attributes:
        now: seconds; begins at 1000.
        ready: what was handed to the caller: scores, an error, or None at the end.
        handed_at: when each of them was.
        caller_s: how long the caller works on an answer; None for a caller that takes none.
        thread_s: how long a question on a thread of its own takes.
        traffic: what the pump has counted.
        threads: the names of the threads that were made.
        made: the requests that were made.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.ready: list[Any] = []
        self.handed_at: list[float] = []
        self.caller_s: float | None = 0.0
        self.thread_s = 0.0
        self.traffic = Traffic()
        self.threads: list[str] = []
        self.made: list[int] = []
        self._coming: list[tuple[float, int, Callable[[], object]]] = []
        self._order = itertools.count()
        self._events: deque[Any] = deque()
        monkeypatch.setattr(pump, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(pump, "threading", SimpleNamespace(Thread=self._thread))
        monkeypatch.setattr(retry.random, "uniform", lambda _, most: most)

    def server(self, answer: Answer = right, seconds: float = 0.1) -> Server:
        return Server(self, answer, seconds)

    def after(self, seconds: float, action: Callable[[], object]) -> None:
        """Lets something happen, `seconds` from now."""
        heapq.heappush(self._coming, (self.now + seconds, next(self._order), action))

    def run(self, servers: Sequence[Server], count: int = 20, in_flight: int = 8, **policy: Any) -> list[float]:
        """Lets a pump send `count` requests; returns the first value of the scores of each that was handed over.

        Raises:
            what ended the pump.
        """
        one = self.pump(servers, count, in_flight, **policy)
        one.run()
        *scores, end = self.ready
        if end is not None:
            raise end
        return [float(some.reshape(-1)[0]) for some in scores]

    def pump(self, servers: Sequence[Server], count: int = 20, in_flight: int = 8, **policy: Any) -> Pump:
        for number, server in enumerate(servers, 1):
            server.url = f"server-{number}:8001"
        one = Pump(servers, MODEL, self._requests(count), RetryPolicy(**policy), in_flight, self.traffic)  # type: ignore[arg-type]
        one._events = self  # type: ignore[assignment]
        one._ready = SimpleNamespace(put=self._taken)  # type: ignore[assignment]
        return one

    def _requests(self, count: int) -> Iterator[Request]:
        for index in range(count):
            self.made.append(index)
            yield Request(index, np.full((1, 1, VALUES), index, np.float32), None)

    def _taken(self, item: Any) -> None:
        self.ready.append(item)
        self.handed_at.append(self.now)
        if self.caller_s is not None and isinstance(item, np.ndarray):
            self.after(self.caller_s, lambda: self.put(("taken",)))

    def _thread(self, target: Callable[[], object], name: str, daemon: bool) -> Any:
        assert daemon  # no reason for a program to go on
        self.threads.append(name)
        return SimpleNamespace(start=lambda: self.after(self.thread_s, target))

    # The pump's queue ----------------------------------------------------------------------------------------

    def put(self, event: Any) -> None:
        self._events.append(event)

    def get(self, timeout: float) -> Any:
        assert timeout >= 0
        until = self.now + timeout
        while not self._events and self._coming and self._coming[0][0] <= until:
            self._next()
        if not self._events:
            self.now = until
        return self.get_nowait()

    def get_nowait(self) -> Any:
        while self._coming and self._coming[0][0] <= self.now:
            self._next()
        if not self._events:
            raise queue.Empty
        return self._events.popleft()

    def _next(self) -> None:
        when, _, action = heapq.heappop(self._coming)
        self.now = max(self.now, when)
        action()
