"""Many requests in flight to one or several servers; the answers come back in order, whatever happens on the way.

A request that fails is sent again, elsewhere if there is an elsewhere: tiles are pure functions, so nothing is lost
by asking twice. Knows nothing of scans or stitching: requests in, scores out.

One thread (the pump) makes, sends and retries requests; gRPC's threads report answers to it; the caller's thread
takes finished scores from a queue, so that it stitches while the servers work.
"""

from __future__ import annotations

import heapq
import logging
import queue
import random
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from voxtile.errors import ModelError, ServerUnavailable, TileError, VoxtileError
from voxtile.triton.endpoint import Call, ConnectionConfig, Endpoint, Request, ServedModel
from voxtile.triton.window import Window

log = logging.getLogger(__name__)

READY_AHEAD = 4
"""Finished answers that may wait for the caller; more would only hold memory."""


def ready_ahead(in_flight: int) -> int:
    """Finished answers that may wait where so many requests may be on their way: no more of either than is wanted."""
    return min(READY_AHEAD, in_flight)


def inflight_bytes(in_flight: int, servers: int, request_bytes: int) -> int:
    """Returns the bytes of all requests in flight and of answers that wait for the caller, each twice: gRPC copies it.

    Args:
        in_flight: requests in flight to one server at most.
        servers: the number of servers.
        request_bytes: bytes of a request and of its answer.
    """
    return 2 * request_bytes * (in_flight * servers + ready_ahead(in_flight))


BACKOFF_S = (0.1, 1.0)
"""First and longest pause before a failed server is asked again; doubled each time, with jitter."""


@dataclass(frozen=True)
class RetryPolicy:
    """Retry limits.

    Args:
        no_response_timeout_s: seconds without any answer from any server.
        tries: how often one request may be refused.
    """

    no_response_timeout_s: float = 120.0
    tries: int = 4


@dataclass
class Traffic:
    """What has passed so far; bytes are those of the tensors. `peak_in_flight` counts requests over all servers."""

    bytes_sent: int = 0
    bytes_received: int = 0
    requests: int = 0
    retries: int = 0
    peak_in_flight: int = 0


class Transport:
    """The servers that offer `model`, as one.

    Raises ServerUnavailable where none of `urls` answers, ModelError where those that answer do not offer the same
    model (a mask must not be stitched from two networks).
    """

    def __init__(
        self,
        urls: Sequence[str],
        model: str,
        connection: ConnectionConfig = ConnectionConfig(),  # noqa: B008 - frozen
        retry_policy: RetryPolicy = RetryPolicy(),
        max_in_flight: int = 8,
    ) -> None:
        self.retry_policy = retry_policy
        self.traffic = Traffic()
        self.max_in_flight = max_in_flight
        self.endpoints = [Endpoint(url, connection) for url in urls]
        try:
            self.model = self._agreed_model(model)
        except VoxtileError:
            self.close()
            raise

    def _agreed_model(self, name: str) -> ServedModel:
        offers: list[ServedModel] = []
        silent: list[ServerUnavailable] = []
        for endpoint in self.endpoints:
            try:
                offers.append(endpoint.model(name))
            except ServerUnavailable as error:
                silent.append(error)
        if not offers:
            raise silent[0]
        for missing in silent:
            log.warning("%s; going on without it", missing)
        if any(offer.card_text != offers[0].card_text for offer in offers):
            raise ModelError(
                f"the servers {', '.join(e.url for e in self.endpoints)} serve different builds of {name!r}; "
                "give every server the same repository"
            )
        return min(offers, key=lambda offer: offer.max_batch_size)

    def infer(self, requests: Iterator[Request], in_flight: int | None = None) -> Iterator[NDArray[Any]]:
        """The scores of `requests`, in their order. Closing the iterator cancels what is on its way.

        in_flight: requests on their way to one server at most, where fewer than `max_in_flight`.

        Raises TileError when a request cannot be answered.
        """
        pump = _Pump(self, requests, in_flight or self.max_in_flight)
        pump.start()
        try:
            while (item := pump.take()) is not None:
                yield item
        finally:
            pump.stop()

    def close(self) -> None:
        for endpoint in self.endpoints:
            endpoint.close()

    def __enter__(self) -> Transport:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Lane:
    """An endpoint in use: how much is on its way to it, and whether it is fit to be asked."""

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
        return self.up and len(self.calls) < self.window.size

    def fail(self, reason: str, now: float) -> None:
        self.up = False
        self.failures += 1
        self.last_error = reason
        first, longest = BACKOFF_S
        self.asleep_until = now + min(first * 2**self.failures, longest) * random.uniform(0.5, 1.0)


class _Pump(threading.Thread):
    """Sends requests and sorts answers; see the module's text."""

    def __init__(self, transport: Transport, requests: Iterator[Request], in_flight: int) -> None:
        super().__init__(name="voxtile-pump", daemon=True)
        self._transport = transport
        self._model = transport.model
        self._traffic = transport.traffic
        self._retry_policy = transport.retry_policy
        self._requests = requests
        self._lanes = [_Lane(endpoint, in_flight) for endpoint in transport.endpoints]
        self._ahead = ready_ahead(in_flight)
        self._events: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[NDArray[Any] | BaseException | None] = queue.SimpleQueue()
        self._again: list[tuple[float, int, Request]] = []
        self._refused: dict[int, int] = {}
        self._waiting: dict[int, NDArray[Any]] = {}
        self._made = self._handed_over = self._taken = 0
        self._all_made = False
        self._stopping = False
        self._last_answer = time.monotonic()

    # The caller's side ---------------------------------------------------------------------------------------

    def take(self) -> NDArray[Any] | None:
        """The next scores in order; None after the last. Raises what stopped the pump."""
        item = self._ready.get()
        if isinstance(item, BaseException):
            raise item
        self._events.put(("taken",))
        return item

    def stop(self) -> None:
        """Cancels what is on its way and ends the thread."""
        self._events.put(("stop",))
        if not sys.is_finalizing():  # an interpreter that ends has stopped the thread for good
            self.join()

    # The pump's side -----------------------------------------------------------------------------------------

    def run(self) -> None:
        try:
            while not self._stopping and not self._complete():
                self._send_what_fits()
                self._handle_events()
                self._check_no_response()
            self._ready.put(None)
        except BaseException as error:
            self._ready.put(error)
        finally:
            self._cancel_all()

    def _complete(self) -> bool:
        return self._all_made and self._handed_over == self._made

    def _send_what_fits(self) -> None:
        while (lane := self._best_lane()) is not None:
            request = self._next_request()
            if request is None:
                return
            self._send(lane, request)

    def _best_lane(self) -> _Lane | None:
        now = time.monotonic()
        for lane in self._lanes:
            if not lane.up and not lane.probing and now >= lane.asleep_until:
                self._probe(lane)
        free = [lane for lane in self._lanes if lane.room]
        return min(free, key=lambda lane: len(lane.calls) / lane.window.size, default=None)

    def _next_request(self) -> Request | None:
        if self._again and self._again[0][0] <= time.monotonic():
            return heapq.heappop(self._again)[2]
        in_flight = sum(len(lane.calls) for lane in self._lanes)
        if self._all_made or self._made - self._taken >= in_flight + self._ahead + len(self._lanes):
            return None
        request = next(self._requests, None)
        if request is None:
            self._all_made = True
            return None
        self._made += 1
        return request

    def _send(self, lane: _Lane, request: Request) -> None:
        call = lane.endpoint.send(self._model, request, lambda *answer: self._events.put(("answer", lane, *answer)))
        lane.calls.add(call)
        lane.window.sent(time.monotonic())
        self._traffic.requests += 1
        self._traffic.bytes_sent += request.nbytes
        in_flight = sum(len(lane.calls) for lane in self._lanes)
        self._traffic.peak_in_flight = max(self._traffic.peak_in_flight, in_flight)

    def _handle_events(self) -> None:
        """Waits for one event, or until something is due, then takes all there are."""
        try:
            self._handle(self._events.get(timeout=self._pause()))
            while True:
                self._handle(self._events.get_nowait())
        except queue.Empty:
            pass

    def _pause(self) -> float:
        """Seconds until something has to be done without an event."""
        if self._complete():
            return 0.0
        due = [lane.asleep_until for lane in self._lanes if not lane.up and not lane.probing]
        due += [self._again[0][0]] if self._again else []
        return min(max(min(due, default=1e9) - time.monotonic(), 0.001), 1.0)

    def _handle(self, event: tuple[Any, ...]) -> None:
        match event:
            case ("taken",):
                self._taken += 1
            case ("stop",):
                self._stopping = True
            case ("answer", lane, call, result, error):
                lane.calls.discard(call)
                self._answered(lane, call, result, error)
            case ("probed", lane, error):
                self._probed(lane, error)

    def _answered(self, lane: _Lane, call: Call, result: Any, error: Any) -> None:
        if error is not None:
            self._failed(lane, call, error)
            return
        try:
            scores = lane.endpoint.scores(self._model, call, result)
        except ValueError as problem:
            lane.endpoint.release(call, trusted=True)
            self._refuse(lane, call.request, str(problem))
            return
        lane.endpoint.release(call, trusted=True)
        lane.failures = 0
        lane.window.answered(time.monotonic())
        self._last_answer = time.monotonic()
        self._traffic.bytes_received += scores.nbytes
        self._waiting[call.request.index] = scores
        while self._handed_over in self._waiting:
            self._ready.put(self._waiting.pop(self._handed_over))
            self._handed_over += 1

    def _failed(self, lane: _Lane, call: Call, error: Any) -> None:
        """Sorts a failed call: the queue was full, the memory was forgotten, the server is gone, or the tile is bad."""
        now = time.monotonic()
        status, text = error.status() or "", (error.message() or "").strip()
        log.info("request %d at %s failed: %s %s", call.request.index, lane.endpoint.url, status, text)
        lane.endpoint.release(call, trusted=False)
        if "queue" in text.lower() or "RESOURCE_EXHAUSTED" in status:
            lane.window.rejected()
            self._retry(call.request, now + random.uniform(0.05, 0.2))
        elif "shared memory" in text.lower():
            lane.endpoint.forget_slots()
            self._refuse(lane, call.request, text)
        elif any(state in status for state in ("UNAVAILABLE", "CANCELLED", "NOT_FOUND", "UNKNOWN")):
            self._down(lane, text or status, now)
            self._retry(call.request, now)
        else:
            if "DEADLINE" in status:
                self._down(lane, f"no answer within {lane.endpoint.connection.deadline_s:g} s", now)
            self._refuse(lane, call.request, text or status)

    def _down(self, lane: _Lane, reason: str, now: float) -> None:
        if lane.up:
            lane.fail(reason, now)
            lane.endpoint.forget_slots()

    def _refuse(self, lane: _Lane, request: Request, reason: str) -> None:
        """Counts an answer (or an error) of this very request; too many of them end the scan."""
        tries = self._refused[request.index] = self._refused.get(request.index, 0) + 1
        if tries >= self._retry_policy.tries:
            raise TileError(
                f"model {self._model.card.name!r}: request {request.index} ({len(request.roi)} tiles) failed {tries} "
                f"times, last at {lane.endpoint.url}: {reason}"
            )
        self._retry(request, time.monotonic() + random.uniform(0.0, 0.05))

    def _retry(self, request: Request, when: float) -> None:
        self._traffic.retries += 1
        heapq.heappush(self._again, (when, request.index, request))

    def _probe(self, lane: _Lane) -> None:
        """Asks on a thread of its own whether the server is back with the same model, so that others go on."""
        lane.probing = True

        def ask() -> None:
            error: VoxtileError | None = None
            try:
                if lane.endpoint.model(self._model.card.name).card_text != self._model.card_text:
                    error = ModelError(f"{lane.endpoint.url} came back with another build of the model")
            except VoxtileError as problem:
                error = problem
            except Exception as problem:
                error = ServerUnavailable(f"{lane.endpoint.url}: {problem}")
            self._events.put(("probed", lane, error))

        threading.Thread(target=ask, name="voxtile-probe", daemon=True).start()

    def _probed(self, lane: _Lane, error: VoxtileError | None) -> None:
        lane.probing = False
        if error is None:
            lane.up = True
        else:
            lane.fail(str(error), time.monotonic())

    def _check_no_response(self) -> None:
        if any(lane.up for lane in self._lanes) or self._stopping:
            return
        waited = time.monotonic() - self._last_answer
        if waited > self._retry_policy.no_response_timeout_s:
            reasons = "; ".join(f"{lane.endpoint.url}: {lane.last_error}" for lane in self._lanes)
            raise TileError(
                f"model {self._model.card.name!r}: no server has answered for {waited:.0f} s, "
                f"{self._handed_over} requests were done ({reasons})"
            )

    def _cancel_all(self) -> None:
        for lane in self._lanes:
            for call in lane.calls:
                call.cancel()
            for call in lane.calls:
                lane.endpoint.release(call, trusted=False)
            lane.calls.clear()
            lane.endpoint.forget_slots()
