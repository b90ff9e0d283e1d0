"""What Triton's stub loads for the backend `voxtile`: the bytes of a scan in, those of its mask out.

One instance segments one scan at a time, and `execute` returns when it is done: Triton notices only then that a stub
has died, and queues, refuses and times out what waits.
"""

from __future__ import annotations

import base64
import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from ..entry import Entry
from ..serving import refuse_numpy_2
from .packages import import_client

import_client()

from voxtile.asked import as_parameters  # noqa: E402
from voxtile.budget import left_for_reading  # noqa: E402
from voxtile.errors import VoxtileError, in_one_line  # noqa: E402
from voxtile.io.writing import image_bytes  # noqa: E402
from voxtile.job import Cancellation, Cancelled  # noqa: E402
from voxtile.options import Options  # noqa: E402
from voxtile.segmenter import Segmentation, Segmenter  # noqa: E402

from .bls import BlsTransport  # noqa: E402
from .networks import networks_of  # noqa: E402
from .request import TEXT, asked_for, scan_of  # noqa: E402

BETWEEN_S = 0.1
"""Seconds between two questions whether a request was cancelled, and between two reports of progress."""

LIMIT = "max_ram_mib"
"""The parameter of config.pbtxt with the most memory that a scan may take, in MiB."""

Report = Callable[[float], None]


class TritonPythonModel:
    """One instance of a scan entry."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the networks' cards. Nothing can be asked of other models yet."""
        refuse_numpy_2()
        config = json.loads(args["model_config"])
        # `model_repository` is the entry's own folder.
        parameters = Entry(config, Path(args["model_repository"])).parameters
        self.name = config["name"]
        self.networks = networks_of(parameters, Path(args["model_repository"]))
        self.limit_mib = float(parameters[LIMIT]) if LIMIT in parameters else None
        self.streams = pb_utils.using_decoupled_model_transaction_policy(config)

    def execute(self, requests: Sequence[Any]) -> list[Any] | None:
        """Triton's responses, one for each of its requests; a streaming entry sends its own."""
        if not self.streams:
            return [self._response(request, lambda _: None) for request in requests]
        for request in requests:
            self._stream(request)
        return None

    def _stream(self, request: Any) -> None:
        sender = request.get_response_sender()

        def report(share: float) -> None:
            sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("progress", np.full((1, 1), share, np.float32))]))

        response = self._response(request, report)
        sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _response(self, request: Any, report: Report) -> Any:
        """The mask and its report, or why there is none."""
        try:
            with _watched(request) as cancellation:
                return self._answer(request, report, cancellation)
        except Cancelled:
            return _failed("cancelled", pb_utils.TritonError.CANCELLED)
        except VoxtileError as error:
            kind = pb_utils.TritonError.INTERNAL if error.exit_code == 3 else pb_utils.TritonError.INVALID_ARG
            return _failed(as_parameters(in_one_line(error)), kind)
        except Exception as error:  # one scan must not end the stub
            return _failed(as_parameters(in_one_line(error)), pb_utils.TritonError.INTERNAL)

    def _answer(self, request: Any, report: Report, cancellation: Cancellation) -> Any:
        options, compressed = asked_for(request.parameters(), self.limit_mib)
        given = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        scan = scan_of(given, left_for_reading(options.max_ram_bytes))
        with self._segmenter(options) as segmenter:
            found = segmenter.segment(scan, _now_and_then(report), cancellation)
        done = [pb_utils.Tensor("progress", np.ones((1, 1), np.float32))] if self.streams else []
        return pb_utils.InferenceResponse([*done, *_answered(found, compressed, as_text=TEXT in given)])

    def _segmenter(self, options: Options) -> Segmenter:
        first, *_ = self.networks
        return Segmenter(model=first, options=options, connect=self._connected)

    def _connected(self, name: str) -> BlsTransport:
        network = self.networks[name]
        return BlsTransport(network.model, network.at_once)


@contextlib.contextmanager
def _watched(request: Any) -> Iterator[Cancellation]:
    """What ends the work within the block soon after the caller has gone."""
    cancellation, over = Cancellation(), threading.Event()

    def watch() -> None:
        while not request.is_cancelled():
            if over.wait(BETWEEN_S):
                return
        cancellation.cancel()

    watching = threading.Thread(target=watch, name="voxtile-watch")
    watching.start()
    try:
        yield cancellation
    finally:
        over.set()
        watching.join()


def _now_and_then(report: Report) -> Callable[[int, int], None]:
    """What to call after each tile: it reports now and then, and never less than before.

    Of a set, the tiles of later models are not yet counted when the first begins.
    """
    reported, most = time.monotonic(), 0.0

    def after_tile(done: int, total: int) -> None:
        nonlocal reported, most
        now, most = time.monotonic(), max(most, done / total)
        if now - reported >= BETWEEN_S:
            reported = now
            report(most)

    return after_tile


def _answered(found: Segmentation, compressed: bool, *, as_text: bool) -> list[Any]:
    report = np.array([[found.report.model_dump_json().encode()]], object)
    mask = image_bytes(found.mask, compressed)
    # The last of all: a caller of raw HTTP takes the end of the answer for the mask.
    last = (
        pb_utils.Tensor("mask_base64", np.array([[base64.b64encode(mask)]], object))
        if as_text
        else pb_utils.Tensor("mask", np.frombuffer(mask, np.uint8)[None])
    )
    return [pb_utils.Tensor("report", report), last]


def _failed(text: str, kind: int) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(text, kind))
