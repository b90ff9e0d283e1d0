"""Sends tiles to a model of the same server: Triton's "business logic scripting", without a port or a copy.

Implements `voxtile.triton.transport.Transport`. Knows nothing of scans.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from voxtile.errors import TileError
from voxtile.triton.faults import Fault, classify
from voxtile.triton.retry import pause_s
from voxtile.triton.transport import DEFAULT_IN_FLIGHT, Answers
from voxtile.triton.types import Request, ServedModel, Traffic, scores_shape

TRIES = 4
"""How often one request may fail, as for clients over gRPC."""
HERE = "this server"


class BlsTransport:
    """Runs tiles through one model of the server that this process belongs to.

    Args:
        model: the model.
        at_once: requests of one scan inside Triton, at most: those that compute, and one that waits for each. What is
            inside cannot be cancelled. None for as many as the scan has on their way.
    """

    def __init__(self, model: ServedModel, at_once: int | None = None) -> None:
        self.model = model
        self.servers = (HERE,)
        self._at_once = at_once

    def infer(
        self, requests: Iterator[Request], in_flight: int = DEFAULT_IN_FLIGHT, traffic: Traffic | None = None
    ) -> Answers:
        """See `Transport.infer`. The scores are views of the server's memory.

        Closing waits for the requests that are inside Triton.
        """
        counted = _Counted(traffic or Traffic())
        stopped = threading.Event()

        def scores(request: Request) -> NDArray[Any]:
            return self._scores(request, counted, stopped)

        return _InOrder(scores, requests, in_flight, min(in_flight, self._at_once or in_flight), stopped)

    def close(self) -> None:
        """Nothing is held between scans."""

    def _scores(self, request: Request, counted: _Counted, stopped: threading.Event) -> NDArray[Any]:
        """The scores of one request, which is sent again where it fails.

        Raises:
            TileError: it failed on every try, or the engine's process has died.
        """
        for failures in itertools.count(1):
            if stopped.is_set():
                raise CancelledError
            before = counted.answers
            with counted.sent(request, again=failures > 1):
                response = _asked(self.model, request)
            if not response.has_error():
                return self._checked(response, request, counted)
            said = response.error().message()
            # Where another process of the engine answers, it may have this one too; Triton 24.10 starts none again.
            dead = classify("INTERNAL", said) is Fault.SERVER_LOST and counted.answers == before
            if dead or failures == TRIES or stopped.wait(pause_s(failures - 1)):
                break
        stopped.set()  # no later request is sent
        tries = "once" if failures == 1 else f"{failures} times"
        raise TileError(f"model {self.model.card.name!r}: request {request.index} failed {tries}: {said}")

    def _checked(self, response: Any, request: Request, counted: _Counted) -> NDArray[Any]:
        scores: NDArray[Any] = pb_utils.get_output_tensor_by_name(response, request.output).as_numpy()
        wanted = scores_shape(self.model.card, request)
        if scores.shape != wanted:
            raise TileError(
                f"model {self.model.card.name!r}: expected scores {list(wanted)}, found {list(scores.shape)}; the "
                "network was built again since this entry was written"
            )
        counted.received(scores)
        return scores


class _InOrder:
    """Answers in the order of their requests, which threads send.

    Args:
        scores: gives the scores of a request.
        requests: made as they are needed.
        in_flight: requests that are made before their answers are taken.
        threads: requests that are sent at once.
        stopped: set when it is closed, or by `scores` before it raises an error.
    """

    def __init__(
        self,
        scores: Callable[[Request], NDArray[Any]],
        requests: Iterator[Request],
        in_flight: int,
        threads: int,
        stopped: threading.Event,
    ) -> None:
        self._scores, self._requests, self._in_flight, self._stopped = scores, requests, in_flight, stopped
        self._waiting: deque[Future[NDArray[Any]]] = deque()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="voxtile-tile")

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return self

    def __next__(self) -> NDArray[Any]:
        while len(self._waiting) < self._in_flight and (request := next(self._requests, None)) is not None:
            if not self._submit(request):
                break
        if not self._waiting:
            self.close()
            raise StopIteration
        try:
            return self._waiting.popleft().result()
        except CancelledError:
            if (failed := self._failed()) is not None:
                raise failed from None
            raise StopIteration from None

    def _failed(self) -> BaseException | None:
        """The error of a later request, for which this one was not sent again; None where it was closed."""
        for one in self._waiting:
            with contextlib.suppress(CancelledError):
                if (error := one.exception()) is not None:
                    return error
        return None

    def close(self) -> None:
        """See `Answers.close`."""
        self._stopped.set()
        self._pool.shutdown(cancel_futures=True)

    def _submit(self, request: Request) -> bool:
        """Whether the request will be sent; none is after `close`."""
        try:
            self._waiting.append(self._pool.submit(self._scores, request))
        except RuntimeError:
            if self._stopped.is_set():
                return False
            raise
        return True


def _asked(model: ServedModel, request: Request) -> Any:
    tensors = [pb_utils.Tensor(key, np.ascontiguousarray(array)) for key, array in request.inputs]
    # NumPy stitches the scores, also where a GPU computes them. The stub adds this name after it has loaded modules.
    memory = pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0)
    return pb_utils.InferenceRequest(
        model_name=model.served_as,
        model_version=int(model.version),
        requested_output_names=[request.output],
        inputs=tensors,
        preferred_memory=memory,
    ).exec()


class _Counted:
    """Counts what threads send and receive."""

    def __init__(self, traffic: Traffic) -> None:
        self.answers = 0
        self._traffic = traffic
        self._lock = threading.Lock()
        self._flying = 0

    @contextlib.contextmanager
    def sent(self, request: Request, *, again: bool) -> Iterator[None]:
        """Counts a request, and that it is on its way within the block."""
        with self._lock:
            self._flying += 1
            traffic = self._traffic
            traffic.requests += 1
            traffic.retries += again
            traffic.bytes_sent += request.nbytes
            traffic.peak_in_flight = max(traffic.peak_in_flight, self._flying)
        try:
            yield
        finally:
            with self._lock:
                self._flying -= 1

    def received(self, scores: NDArray[Any]) -> None:
        """Counts an answer."""
        with self._lock:
            self.answers += 1
            self._traffic.bytes_received += scores.nbytes
