"""Sends tiles to a model of the same server: Triton's "business logic scripting", without a port or a copy.

Implements `voxtile.triton.transport.Transport`. Knows nothing of scans.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from voxtile.errors import TileError
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
    """

    def __init__(self, model: ServedModel) -> None:
        self.model = model
        self.servers = (HERE,)

    def infer(
        self, requests: Iterator[Request], in_flight: int = DEFAULT_IN_FLIGHT, traffic: Traffic | None = None
    ) -> Answers:
        """See `Transport.infer`. The scores are views of the server's memory.

        Closing waits for the requests that run: Triton cannot cancel them.
        """
        return self._answers(requests, in_flight, traffic)

    def _answers(
        self, requests: Iterator[Request], in_flight: int, traffic: Traffic | None
    ) -> Generator[NDArray[Any], None, None]:
        counted = _Counted(traffic or Traffic())
        waiting: deque[Future[NDArray[Any]]] = deque()
        with ThreadPoolExecutor(in_flight, thread_name_prefix="voxtile-tile") as pool:
            try:
                for request in requests:
                    waiting.append(pool.submit(self._scores, request, counted))
                    if len(waiting) == in_flight:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def close(self) -> None:
        """Nothing is held between scans."""

    def _scores(self, request: Request, counted: _Counted) -> NDArray[Any]:
        """The scores of one request, which is sent again where it fails.

        Raises:
            TileError: it failed on every try.
        """
        said = ""
        for failures in range(TRIES):
            if failures:
                time.sleep(pause_s(failures - 1))
            with counted.sent(request, again=failures > 0):
                response = _asked(self.model.card.name, request)
            if not response.has_error():
                return self._checked(response, request, counted)
            said = response.error().message()
        raise TileError(f"model {self.model.card.name!r}: request {request.index} failed {TRIES} times: {said}")

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


def _asked(name: str, request: Request) -> Any:
    tensors = [pb_utils.Tensor(key, np.ascontiguousarray(array)) for key, array in request.inputs]
    # NumPy stitches the scores, also where a GPU computes them. The stub adds this name after it has loaded modules.
    memory = pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0)
    return pb_utils.InferenceRequest(
        model_name=name, requested_output_names=[request.output], inputs=tensors, preferred_memory=memory
    ).exec()


class _Counted:
    """Counts what threads send and receive."""

    def __init__(self, traffic: Traffic) -> None:
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
            self._traffic.bytes_received += scores.nbytes
