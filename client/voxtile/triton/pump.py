"""Keeps many requests in flight to several servers, sends failed ones again, and hands answers over in order.

One thread (the pump) makes, sends and retries requests. gRPC's threads report answers to it. The caller's thread takes
finished scores from a queue, so that it works while the servers compute. A tile is a pure function, so a request that
failed may be sent again, to another server where there is one. Knows nothing of scans or stitching.
"""

from __future__ import annotations

import logging
import queue
import random
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from numpy.typing import NDArray

from voxtile.errors import ModelError, NoResponseError, ServerUnavailable, TileError, VoxtileError
from voxtile.triton.backlog import Backlog
from voxtile.triton.endpoint import Call, Endpoint
from voxtile.triton.faults import Fault, classify
from voxtile.triton.lane import Lane
from voxtile.triton.retry import RetryPolicy
from voxtile.triton.types import Request, ServedModel, Traffic

log = logging.getLogger(__name__)

READY_AHEAD = 4
"""The most finished answers that wait for the caller; more would only take memory."""

LONGEST_WAIT_S = 1.0
"""The pump looks after this time at the latest whether something is due."""


def ready_ahead(in_flight: int) -> int:
    """The most finished answers that wait for the caller, with `in_flight` requests in flight to one server."""
    return min(READY_AHEAD, in_flight)


def inflight_bytes(in_flight: int, servers: int, request_bytes: int) -> int:
    """The bytes of all requests in flight and of answers that wait for the caller, each twice because gRPC copies it.

    Args:
        in_flight: the most requests in flight to one server.
        servers: the number of servers.
        request_bytes: the bytes of a request and of its answer.
    """
    return 2 * request_bytes * (in_flight * servers + ready_ahead(in_flight))


class Pump(threading.Thread):
    """Sends requests and sorts answers, once started.

    Args:
        endpoints: the servers.
        model: the model, the same on all servers.
        requests: the requests, with indices 0, 1, 2, ….
        retry_policy: retry limits.
        in_flight: the most requests in flight to one server.
        traffic: counters to increase.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        model: ServedModel,
        requests: Iterator[Request],
        retry_policy: RetryPolicy,
        in_flight: int,
        traffic: Traffic,
    ) -> None:
        super().__init__(name="voxtile-pump", daemon=True)
        self._model = model
        self._retry_policy = retry_policy
        self._traffic = traffic
        self._lanes = [Lane(endpoint, in_flight) for endpoint in endpoints]
        self._ahead = ready_ahead(in_flight)
        self._backlog = Backlog(requests)
        self._refusals: dict[int, int] = {}
        self._events: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[NDArray[Any] | BaseException | None] = queue.SimpleQueue()
        self._stopping = False
        self._last_answer = time.monotonic()

    # The caller's side ---------------------------------------------------------------------------------------

    def take(self) -> NDArray[Any] | None:
        """Returns the next scores in order; None after the last. Raises what stopped the pump."""
        item = self._ready.get()
        if isinstance(item, BaseException):
            raise item
        self._events.put(("taken",))
        return item

    def stop(self) -> None:
        """Cancels what is in flight and waits for the thread's end."""
        self._events.put(("stop",))
        if not sys.is_finalizing():  # an interpreter that ends has stopped the thread for good
            self.join()

    # The pump's side -----------------------------------------------------------------------------------------

    def run(self) -> None:
        try:
            for lane in self._lanes:  # an earlier run may have had more in flight
                lane.endpoint.tidy_slots(lane.window.limit)
            while not self._stopping and not self._backlog.complete:
                self._send_what_fits()
                self._handle_events()
                self._check_no_response()
            self._ready.put(None)
        except BaseException as error:
            self._ready.put(error)
        finally:
            self._cancel_all()

    @property
    def _in_flight(self) -> int:
        return sum(len(lane.calls) for lane in self._lanes)

    def _send_what_fits(self) -> None:
        while (lane := self._best_lane()) is not None:
            most = self._in_flight + self._ahead + len(self._lanes)
            request = self._backlog.next(time.monotonic(), most)
            if request is None:
                return
            self._send(lane, request)

    def _best_lane(self) -> Lane | None:
        now = time.monotonic()
        for lane in self._lanes:
            if lane.due(now):
                self._probe(lane)
        return min((lane for lane in self._lanes if lane.room), key=lambda lane: lane.load, default=None)

    def _send(self, lane: Lane, request: Request) -> None:
        call = lane.endpoint.send(self._model, request, lambda *answer: self._events.put(("answer", lane, *answer)))
        lane.calls.add(call)
        lane.window.sent(time.monotonic())
        self._traffic.requests += 1
        self._traffic.bytes_sent += request.nbytes
        self._traffic.shared_memory |= call.slot is not None
        self._traffic.peak_in_flight = max(self._traffic.peak_in_flight, self._in_flight)

    # Events --------------------------------------------------------------------------------------------------

    def _handle_events(self) -> None:
        """Waits for one event, or until something is due, then handles all events there are."""
        try:
            self._handle(self._events.get(timeout=self._pause()))
            while True:
                self._handle(self._events.get_nowait())
        except queue.Empty:
            pass

    def _pause(self) -> float:
        """Seconds until something has to be done without an event."""
        if self._backlog.complete:
            return 0.0
        due = [lane.asleep_until for lane in self._lanes if not lane.up and not lane.probing]
        if self._backlog.next_retry is not None:
            due.append(self._backlog.next_retry)
        now = time.monotonic()
        return min(max(min(due, default=now + LONGEST_WAIT_S) - now, 0.001), LONGEST_WAIT_S)

    def _handle(self, event: tuple[Any, ...]) -> None:
        match event:
            case ("taken",):
                self._backlog.taken()
            case ("stop",):
                self._stopping = True
            case ("answer", lane, call, result, error):
                lane.calls.discard(call)
                self._answered(lane, call, result, error)
            case ("probed", lane, error):
                self._probed(lane, error)

    def _answered(self, lane: Lane, call: Call, result: Any, error: Any) -> None:
        if error is not None:
            self._failed(lane, call, error)
            return
        try:
            scores = lane.endpoint.scores(self._model, call, result)
        except ValueError as problem:
            self._refused(lane, call.request, str(problem))
            return
        finally:
            lane.endpoint.release(call, trusted=True)
        self._last_answer = time.monotonic()
        lane.answered(self._last_answer)
        self._traffic.bytes_received += scores.nbytes
        for ready in self._backlog.answered(call.request.index, scores):
            self._ready.put(ready)

    # Faults --------------------------------------------------------------------------------------------------

    def _failed(self, lane: Lane, call: Call, error: Any) -> None:
        """Does what the fault asks for; see `Fault`."""
        now, request = time.monotonic(), call.request
        status, text = error.status() or "", (error.message() or "").strip()
        log.info("request %d at %s failed: %s %s", request.index, lane.endpoint.url, status, text)
        lane.endpoint.release(call, trusted=False)
        match classify(status, text):
            case Fault.QUEUE_FULL:
                lane.window.rejected()
                self._retry(request, now + random.uniform(0.05, 0.2))
            case Fault.MEMORY_FORGOTTEN:
                lane.endpoint.forget_slots()
                self._refused(lane, request, text)
            case Fault.SERVER_LOST:
                self._lost(lane, text or status, now)
                self._retry(request, now)
            case Fault.DEADLINE:
                self._lost(lane, f"no answer within {lane.endpoint.connection.deadline_s:g} s", now)
                self._refused(lane, request, text or status)
            case Fault.REFUSED:
                self._refused(lane, request, text or status)

    def _lost(self, lane: Lane, reason: str, now: float) -> None:
        if lane.up:
            lane.fail(reason, now)
            lane.endpoint.forget_slots()

    def _refused(self, lane: Lane, request: Request, reason: str) -> None:
        """Counts a refusal of this very request; too many of them end the scan."""
        tries = self._refusals[request.index] = self._refusals.get(request.index, 0) + 1
        if tries >= self._retry_policy.tries:
            raise TileError(
                f"model {self._model.card.name!r}: request {request.index} ({len(request.roi)} tiles) failed {tries} "
                f"times, last at {lane.endpoint.url}: {reason}"
            )
        self._retry(request, time.monotonic() + random.uniform(0.0, 0.05))

    def _retry(self, request: Request, when: float) -> None:
        self._traffic.retries += 1
        self._backlog.retry(request, when)

    def _probe(self, lane: Lane) -> None:
        """Asks, on a thread of its own, whether the server is back with the same model."""
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

    def _probed(self, lane: Lane, error: VoxtileError | None) -> None:
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
            raise NoResponseError(
                f"model {self._model.card.name!r}: no server has answered for {waited:.0f} s, "
                f"{self._backlog.handed_over} requests were done ({reasons})"
            )

    def _cancel_all(self) -> None:
        for lane in self._lanes:
            for call in lane.calls:
                call.cancel()
            for call in lane.calls:
                lane.endpoint.release(call, trusted=False)
            lane.calls.clear()
            lane.endpoint.tidy_slots(lane.window.limit)
