"""Keeps many requests in flight to several servers, sends failed ones again, and hands answers over in order.

One thread (the pump) makes, sends and retries requests. gRPC's threads report answers to it. The caller's thread takes
finished scores from a queue, so that it works while the servers compute. A tile is a pure function, so a request that
failed may be sent again, to another server where there is one; `faults` decides. Knows nothing of scans or stitching.
"""

from __future__ import annotations

import logging
import queue
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from numpy.typing import NDArray

from voxtile.errors import (
    AccessError,
    NoCardError,
    NoResponseError,
    OtherBuildError,
    ServerUnavailable,
    TileError,
    VoxtileError,
)
from voxtile.triton.backlog import Backlog
from voxtile.triton.endpoint import Call, Endpoint
from voxtile.triton.faults import Fault, Remedy, classify
from voxtile.triton.lane import Lane
from voxtile.triton.retry import Attempts, RetryPolicy, pause_s
from voxtile.triton.types import Request, ServedModel, Traffic
from voxtile.triton.versions import has_build, same_build

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

    Each server but the first may have one more that waits, so that it need not be idle behind a slower one.

    Args:
        in_flight: the most requests in flight to one server.
        servers: the number of servers.
        request_bytes: the bytes of a request and of its answer.
    """
    return 2 * request_bytes * (in_flight * servers + ready_ahead(in_flight) + servers - 1)


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
        self._lanes = [Lane(number, endpoint, in_flight) for number, endpoint in enumerate(endpoints)]
        self._served = [model for _ in endpoints]  # by the lane's number: the build, under the name that it has there
        self._ahead = ready_ahead(in_flight)
        self._backlog = Backlog(requests)
        self._attempts = Attempts(retry_policy.tries)
        self._events: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[NDArray[Any] | BaseException | None] = queue.SimpleQueue()
        self._stopping = False
        self._last_success = time.monotonic()

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
            if not self._stopping:
                self._check_not_replaced()
            self._ready.put(None)
        except BaseException as error:
            self._ready.put(error)
        finally:
            self._cancel_all()

    @property
    def _in_flight(self) -> int:
        return sum(len(lane.calls) for lane in self._lanes)

    def _send_what_fits(self) -> None:
        now = time.monotonic()
        for lane in self._lanes:
            if lane.due(now):
                self._probe(lane)
        while any(lane.has_room(now) for lane in self._lanes):
            most = self._in_flight + self._ahead + len(self._lanes)
            request = self._backlog.next(now, most, lambda one: self._lane_for(one, now) is not None)
            free = None if request is None else self._lane_for(request, now)
            if request is None or free is None:
                return
            self._send(free, request)

    def _lane_for(self, request: Request, now: float) -> Lane | None:
        """The server that the request is sent to now; None where it waits for one that has failed at it less often."""
        reluctance = {lane: self._attempts.reluctance(request.index, lane.number) for lane in self._lanes if lane.up}
        least = min((count for count in reluctance.values() if count is not None), default=None)
        free = (lane for lane, count in reluctance.items() if count == least is not None and lane.has_room(now))
        return min(free, key=lambda lane: lane.load, default=None)

    def _send(self, lane: Lane, request: Request) -> None:
        model = self._served[lane.number]
        call = lane.endpoint.send(model, request, lambda *answer: self._events.put(("answer", lane, *answer)))
        lane.sent(call, time.monotonic())
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
        now = time.monotonic()
        due = [
            lane.asleep_until for lane in self._lanes if not lane.probing and (not lane.up or lane.asleep_until > now)
        ]
        retry = self._backlog.next_retry_after(now)
        if retry is not None:
            due.append(retry)
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
            case ("probed", lane, found, error):
                self._probed(lane, found, error)

    def _answered(self, lane: Lane, call: Call, result: Any, error: Any) -> None:
        if error is not None:
            self._failed(lane, call, error)
            return
        try:
            scores = lane.endpoint.scores(self._model, call, result)
        except ValueError as problem:
            self._count(lane, call.request, Fault.BROKEN, str(problem), time.monotonic())
            return
        finally:
            lane.endpoint.release(call, trusted=True)
        self._last_success = time.monotonic()
        lane.answered(self._last_success)
        self._attempts.forget(call.request.index)
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
        fault, reason = classify(status, text), text or status
        if fault.lost:
            self._lost(lane, fault, reason, now)
        if fault.counts:
            self._count(lane, request, fault, reason, now)
        elif fault is Fault.QUEUE_FULL:
            lane.slow_down(call, reason, now)
            self._retry(request, now + pause_s(0))
        else:
            self._retry(request, now)

    def _lost(self, lane: Lane, fault: Fault, reason: str, now: float) -> None:
        if lane.up:
            lane.fail(reason, now)
            lane.restarted = fault in (Fault.SERVER_LOST, Fault.MEMORY_FORGOTTEN)
            lane.endpoint.forget_slots()
        if fault is Fault.DENIED:
            self._rule_out(lane, AccessError(f"{lane.endpoint.url}: {fault.meaning} ({reason}); {fault.advice}"))

    def _rule_out(self, lane: Lane, error: VoxtileError) -> None:
        """Raises what stands against the servers, once there is no use in waiting for any of them."""
        lane.final = error
        if len(self._lanes) > 1 and lane.endpoint.ruled_out != str(error):
            lane.endpoint.ruled_out = str(error)
            log.warning("%s; going on without it", error)
        if all(one.final for one in self._lanes):
            raise error

    def _count(self, lane: Lane, request: Request, fault: Fault, reason: str, now: float) -> None:
        """Counts a failure of the request at this server; the scan ends when no server is left for it."""
        self._attempts.failed(request.index, lane.number, fault.remedy)
        if all(one.final or self._attempts.reluctance(request.index, one.number) is None for one in self._lanes):
            raise self._tile_error(lane, request, fault, reason)
        if fault is Fault.BROKEN and lane.strike(reason):
            self._lost(lane, fault, reason, now)
        retried_at_once = fault.remedy is Remedy.GIVE_UP  # it goes to another server
        self._retry(request, now if retried_at_once else now + pause_s(self._attempts.failures(request.index) - 1))

    def _tile_error(self, lane: Lane, request: Request, fault: Fault, reason: str) -> TileError:
        failures = self._attempts.failures(request.index)
        return TileError(
            f"model {self._model.card.name!r}: request {request.index} ({len(request.roi)} tiles) failed {failures} "
            f"time{'s' * (failures != 1)}, last at {lane.endpoint.url}: {reason}; {fault.meaning}"
            f"{'; ' * bool(fault.advice)}{fault.advice}"
        )

    def _retry(self, request: Request, when: float) -> None:
        self._traffic.retries += 1
        self._backlog.retry(request, when)

    def _probe(self, lane: Lane) -> None:
        """Asks, on a thread of its own, whether the server is there with the same model, under whatever name."""
        lane.probing = True

        def ask() -> None:
            found: ServedModel | None = None
            error: VoxtileError | None = None
            try:
                found = same_build(lane.endpoint, self._model)
                error = self._other_build(lane) if found is None else None
            except VoxtileError as problem:
                error = problem
            except Exception as problem:
                error = ServerUnavailable(f"{lane.endpoint.url}: {problem}")
            self._events.put(("probed", lane, found, error))

        threading.Thread(target=ask, name="voxtile-probe", daemon=True).start()

    def _probed(self, lane: Lane, found: ServedModel | None, error: VoxtileError | None) -> None:
        lane.probing = False
        if error is None:
            self._served[lane.number] = found or self._model
            lane.back()
            return
        lane.fail(str(error), time.monotonic())
        if isinstance(error, OtherBuildError) and lane.answers and not lane.restarted:
            raise error  # which of its answers came from which build is not known
        if isinstance(error, (AccessError, OtherBuildError)):
            self._rule_out(lane, error)

    def _other_build(self, lane: Lane) -> OtherBuildError:
        return OtherBuildError(
            f"{lane.endpoint.url} serves another build of model {self._model.card.name!r} than when this client "
            "connected, and a mask must not come from two; connect again, and segment the scan from its beginning"
        )

    def _check_not_replaced(self) -> None:
        """Raises OtherBuildError where a server that has answered has another build now: it may have answered with it.

        A server that was started again is asked before its next request. One that loads another build in place goes on
        answering.
        """
        for lane in self._lanes:
            if not lane.answers or (lane.restarted and not lane.up):
                continue
            try:
                same = has_build(lane.endpoint, self._model)
            except NoCardError:
                same = False
            except VoxtileError:  # gone since, or the model is
                continue
            if not same:
                lane.endpoint.serves_model = False
                raise self._other_build(lane)

    def _check_no_response(self) -> None:
        """Raises NoResponseError when there has been no good answer for too long, however many servers are there."""
        now = time.monotonic()
        if self._stopping or (self._backlog.outstanding == 0 and any(lane.up for lane in self._lanes)):
            self._last_success = now  # nothing is asked for: the caller is busy
        waited = now - self._last_success
        if waited > self._retry_policy.no_response_timeout_s:
            reasons = "; ".join(f"{lane.endpoint.url}: {lane.last_error or 'silent'}" for lane in self._lanes)
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
