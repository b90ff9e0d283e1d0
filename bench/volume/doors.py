"""The doors by which a scan becomes a mask: each is made ready from a job, and then called once a run.

A run begins with the scan's file and ends with the mask's file, for every door alike. A job holds `scan`, `mask`,
`warm_up` (a scan that is not measured), `name` of the model, and `grpc`, `http` and `gateway`: HOST:PORT of each.
"""

from __future__ import annotations

import base64
import http.client
import json
import queue
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..engines import Job, Way
from ..ways import voxtile_scan


def client(job: Job) -> Way:
    """Our client; it chooses shared memory itself."""
    return voxtile_scan({**job, "url": job["grpc"]})


def client_without_shared_memory(job: Job) -> Way:
    """Our client, tiles over gRPC."""
    return voxtile_scan({**job, "url": job["grpc"], "shared_memory": False})


def scan_grpc(job: Job) -> Way:
    """NAME_scan over gRPC."""
    triton = _triton(job)

    def call(scan: bytes) -> bytes:
        answer = triton.infer(f"{job['name']}_scan", [_tensor(scan)])
        return bytes(answer.as_numpy("mask").tobytes())

    return _from_file_to_file(job, call)


def scan_stream(job: Job) -> Way:
    """NAME_scan_stream over gRPC, with progress."""
    triton = _triton(job)

    def call(scan: bytes) -> bytes:
        answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
        triton.start_stream(lambda result, error: answers.put((result, error)))
        triton.async_stream_infer(f"{job['name']}_scan_stream", [_tensor(scan)])
        try:
            return _mask_of(answers)
        finally:
            triton.stop_stream()  # its thread would keep the process from ending

    return _from_file_to_file(job, call)


def _mask_of(answers: queue.Queue[tuple[Any, Any]]) -> bytes:
    while True:
        result, error = answers.get()
        if error is not None:
            raise RuntimeError(str(error))
        mask = result.as_numpy("mask")
        if mask is not None:
            return bytes(mask.tobytes())


def scan_http(job: Job) -> Way:
    """NAME_scan over HTTP, the file's bytes in the body."""
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": "0"}

    def call(scan: bytes) -> bytes:
        with _posted(job["http"], f"/v2/models/{job['name']}_scan/infer", scan, headers) as answer:
            described = json.loads(answer.read(int(answer.headers["Inference-Header-Content-Length"])))
            (mask,) = (one for one in described["outputs"] if one["name"] == "mask")
            return answer.read()[-int(mask["parameters"]["binary_data_size"]) :]

    return _from_file_to_file(job, call)


def scan_events(job: Job) -> Way:
    """NAME_scan_stream over HTTP by server-sent events, with progress; scan and mask in base64."""

    def call(scan: bytes) -> bytes:
        body = json.dumps({"scan_base64": base64.b64encode(scan).decode()}).encode()
        path = f"/v2/models/{job['name']}_scan_stream/generate_stream"
        with _posted(job["http"], path, body, {"Content-Type": "application/json"}) as answer:
            events = [json.loads(line.removeprefix(b"data: ")) for line in answer if line.startswith(b"data: ")]
        return base64.b64decode(events[-1]["mask_base64"])

    return _from_file_to_file(job, call)


def gateway(job: Job) -> Way:
    """The gateway, which is a process of its own."""

    def call(scan: bytes) -> bytes:
        with _posted(job["gateway"], f"/v1/models/{job['name']}/mask", scan, {}) as answer:
            return answer.read()

    return _from_file_to_file(job, call)


DOORS: dict[str, Callable[[Job], Way]] = {
    "client, shared memory": client,
    "client, gRPC alone": client_without_shared_memory,
    "NAME_scan, gRPC": scan_grpc,
    "NAME_scan, HTTP": scan_http,
    "NAME_scan_stream, gRPC": scan_stream,
    "NAME_scan_stream, server-sent events": scan_events,
    "gateway": gateway,
}
"""By their names in the table; the others are compared with the first."""


def _from_file_to_file(job: Job, call: Callable[[bytes], bytes]) -> Way:
    call(Path(job["warm_up"]).read_bytes())

    def run() -> dict[str, Any]:
        started = time.perf_counter()
        Path(job["mask"]).write_bytes(call(Path(job["scan"]).read_bytes()))
        return {"seconds": time.perf_counter() - started}

    return run


def _triton(job: Job) -> Any:
    from tritonclient.grpc import InferenceServerClient

    return InferenceServerClient(job["grpc"])


def _tensor(scan: bytes) -> Any:
    from tritonclient.grpc import InferInput

    given = InferInput("scan", [1, len(scan)], "UINT8")
    given.set_data_from_numpy(np.frombuffer(scan, np.uint8)[None])
    return given


def _posted(address: str, path: str, body: bytes, headers: dict[str, str]) -> http.client.HTTPResponse:
    """The answer to a POST.

    Raises:
        RuntimeError: it is a refusal.
    """
    connection = http.client.HTTPConnection(address)
    connection.request("POST", path, body, headers)
    answer = connection.getresponse()
    if answer.status != http.HTTPStatus.OK:
        raise RuntimeError(f"{address}{path}: {answer.status} {answer.read()[:300].decode(errors='replace')}")
    return answer
