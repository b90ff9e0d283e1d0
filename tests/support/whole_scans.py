"""What the tests of doors for whole scans share: scans, callers, and what a server has done and holds."""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import psutil
from tritonclient.grpc import InferenceServerClient, InferInput

from tests.support.served_processes import SHARED_MEMORY, shm_prefix
from voxtile import Segmenter
from voxtile.io.writing import write_image
from voxtile_server.embedded import EmbeddedServer

LONG = (150, 150, 140)
"""Voxels of a scan of 9 × 9 × 8 tiles of the model small-unet."""
LONG_BATCHES = 9 * 9 * 8 // 4
"""Batches of that scan, all of them. A scan that was ended early has fewer, on a machine however fast."""


def write_scan(path: Path, extent: tuple[int, int, int]) -> Path:
    """A scan of random numbers and some air, with turned axes."""
    values = np.random.default_rng(3).integers(1, 900, extent).astype(np.int16)
    values[:6] = 0
    affine = np.array([[0, -1.2, 0, 9], [-1, 0, 0, 4], [0, 0, 2.5, -7], [0, 0, 0, 1.0]])
    nib.save(nib.Nifti1Image(values, affine), path)
    return path


def clients_mask(url: str, name: str, scan: Path, **options: Any) -> bytes:
    """The file that `voxtile segment` writes."""
    with Segmenter(url, name, **options) as segmenter:
        target = scan.with_name(f"client-{name}.nii.gz")
        write_image(segmenter.segment(scan).mask, target)
    return target.read_bytes()


def tensor(scan: bytes) -> InferInput:
    """The input of a scan entry."""
    values = np.frombuffer(scan, np.uint8)[None]
    given = InferInput("scan", list(values.shape), "UINT8")
    given.set_data_from_numpy(values)
    return given


def streamed(client: InferenceServerClient, name: str, given: list[InferInput], **parameters: Any) -> list[Any]:
    """All responses of a stream of the model `name`, or the error that ended it."""
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    client.async_stream_infer(f"{name}_scan_stream", given, enable_empty_final_response=True, parameters=parameters)
    found: list[Any] = []
    while True:
        result, error = answers.get(timeout=120)
        found.append(error or result)
        if error or result.get_response().parameters["triton_final_response"].bool_param:
            client.stop_stream()
            return found


def executions(url: str, entry: str) -> int:
    """How many batches an engine has run."""
    with InferenceServerClient(url) as client:
        return int(client.get_inference_statistics(entry).model_stats[0].execution_count)


def settled(url: str, entry: str) -> int:
    """How many batches an engine has run, once it runs no more."""
    seen = -1
    while (now := executions(url, entry)) != seen:
        seen = now
        time.sleep(1)
    return now


def wait_for_batches(url: str, entry: str, count: int) -> None:
    """Waits until an engine has run `count` batches, for a minute at most."""
    until = time.monotonic() + 60
    while executions(url, entry) < count:
        assert time.monotonic() < until, f"{entry} has run no {count} batches"
        time.sleep(0.05)


def stubs_of(server: EmbeddedServer, model: str) -> list[psutil.Process]:
    """The processes of the server that run a model's Python backend."""
    found = psutil.Process(server.pid).children(recursive=True)
    return [process for process in found if any(f"/{model}/" in word for word in process.cmdline())]


def held(server: EmbeddedServer, entry: str) -> Callable[[], tuple[int, int, list[str], list[str]]]:
    """What a scan could leave: threads and open files of an entry's process, regions of shared memory, files."""
    (stub,) = stubs_of(server, entry)
    # A folder of the server's own: in the common one, other tests start and end servers meanwhile.
    prefix, temporary = shm_prefix(server.pid), Path(stub.environ()["TMPDIR"])

    def now() -> tuple[int, int, list[str], list[str]]:
        regions = sorted(path.name for path in SHARED_MEMORY.glob(f"{prefix}*"))
        files = sorted(path.name for path in temporary.rglob("*"))
        return stub.num_threads(), stub.num_fds(), regions, files

    return now


def peak_mib(process: psutil.Process) -> float:
    """The most memory of its own that a process has had, in MiB: VmHWM."""
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) / 1024


def mask_and_report(answer: bytes) -> tuple[bytes, dict[str, Any]]:
    """The mask is the end of Triton's answer (headers and body), after its JSON and the report."""
    head, _, body = answer.rpartition(b"\r\n\r\n{")
    body = b"{" + body
    length = next(line for line in head.splitlines() if line.lower().startswith(b"inference-header-content-length"))
    described = json.loads(body[: int(length.split(b":")[1])])["outputs"]
    assert [output["name"] for output in described] == ["report", "mask"]
    report, mask = (output["parameters"]["binary_data_size"] for output in described)
    return body[-mask:], json.loads(body[-mask - report + 4 : -mask])
