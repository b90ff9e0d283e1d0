"""A scan in, its mask out, by one request to Triton: the client's mask, to the byte, and no caller is left hanging."""

from __future__ import annotations

import gzip
import json
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import psutil
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from voxtile import Segmenter
from voxtile.io.writing import write_image
from voxtile_build.repository.volume import VolumeSettings, write_volume_entries
from voxtile_server.embedded import EmbeddedServer
from voxtile_server.options import ServerOptions

MODELS = ("small-unet", "identity")
EXTENT = (41, 50, 38)
LIMIT_MIB = 250
"""Of the whole process, which has some 80 MiB before its first scan."""


@dataclass(frozen=True)
class Served:
    """A server with scan entries, a scan, and the masks that the client writes for it."""

    server: EmbeddedServer
    scan: Path
    masks: dict[str, bytes]


@pytest.fixture(scope="module")
def served(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("volumes")
    for name in MODELS:
        # Room for a caller that runs and two that wait.
        write_volume_entries(name, repository, root / "scans here", VolumeSettings(queue=2, max_ram_mib=LIMIT_MIB))
    scan = root / "scan.nii.gz"
    write_scan(scan, EXTENT)
    with EmbeddedServer(repository, ServerOptions(volume_repository=root / "scans here")) as server:
        yield Served(server, scan, {name: clients_mask(server, name, scan) for name in MODELS})


def write_scan(path: Path, extent: tuple[int, int, int]) -> None:
    values = np.random.default_rng(3).integers(1, 900, extent).astype(np.int16)
    values[:6] = 0
    affine = np.array([[0, -1.2, 0, 9], [-1, 0, 0, 4], [0, 0, 2.5, -7], [0, 0, 0, 1.0]])
    nib.save(nib.Nifti1Image(values, affine), path)


def clients_mask(server: EmbeddedServer, name: str, scan: Path, **options: Any) -> bytes:
    with Segmenter(server.grpc_url, name, **options) as segmenter:
        target = scan.with_name(f"client-{name}.nii.gz")
        write_image(segmenter.segment(scan).mask, target)
    return target.read_bytes()


def curl(served: Served, name: str, *arguments: str, scan: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    command = ["curl", "-sS", "-i", "-X", "POST", "-H", "Inference-Header-Content-Length: 0", *arguments]
    url = f"http://{served.server.http_url}/v2/models/{name}_scan/infer"
    return subprocess.run([*command, "-T", str(scan or served.scan), url], capture_output=True, check=True)


def mask_and_report(answer: bytes) -> tuple[bytes, dict[str, Any]]:
    """The mask is the end of Triton's answer, after its JSON and the report."""
    head, _, body = answer.rpartition(b"\r\n\r\n{")
    body = b"{" + body
    length = next(line for line in head.splitlines() if line.lower().startswith(b"inference-header-content-length"))
    described = json.loads(body[: int(length.split(b":")[1])])["outputs"]
    assert [tensor["name"] for tensor in described] == ["report", "mask"]
    report, mask = (tensor["parameters"]["binary_data_size"] for tensor in described)
    return body[-mask:], json.loads(body[-mask - report + 4 : -mask])


def tensor(scan: bytes) -> InferInput:
    values = np.frombuffer(scan, np.uint8)[None]
    given = InferInput("scan", list(values.shape), "UINT8")
    given.set_data_from_numpy(values)
    return given


@pytest.mark.parametrize("name", MODELS)
def test_one_line_of_curl_gives_the_clients_mask(served: Served, name: str) -> None:
    mask, report = mask_and_report(curl(served, name).stdout)
    assert mask == served.masks[name]
    assert report["model"] == name
    assert report["shape"] == list(EXTENT)
    assert report["changes"] == []
    assert report["bytes_received"] > 0


def test_options_travel_as_headers_and_are_named(served: Served) -> None:
    mask, report = mask_and_report(curl(served, "small-unet", "-H", "Voxtile-Overlap: 0.25").stdout)
    assert report["changes"] == ["overlap 0.5 -> 0.25"]
    assert mask == clients_mask(served.server, "small-unet", served.scan, overlap=0.25) != served.masks["small-unet"]


def test_a_mask_may_come_uncompressed(served: Served) -> None:
    mask, _ = mask_and_report(curl(served, "small-unet", "-H", "voxtile-compressed: false").stdout)
    plain = nib.Nifti1Image.from_bytes(mask)
    packed = nib.Nifti1Image.from_bytes(gzip.decompress(served.masks["small-unet"]))
    assert np.array_equal(plain.dataobj, packed.dataobj)


@pytest.mark.parametrize(
    ("arguments", "content", "said"),
    [
        (("-H", "voxtile-overlap: 2"), None, "overlap lies in [0, 1)"),
        (("-H", "voxtile-overlap: much"), None, "option overlap"),
        (("-H", "voxtile-overlaps: 0.5"), None, "unknown option 'overlaps'"),
        (("-H", "voxtile-max-ram-mib: 0.5"), None, "MiB"),
        ((), b"no scan at all", "image 1"),
        ((), b"", "image 1"),
    ],
)
def test_what_cannot_be_segmented_is_one_line_of_the_clients(
    served: Served, tmp_path: Path, arguments: tuple[str, ...], content: bytes | None, said: str
) -> None:
    scan = None if content is None else tmp_path / "scan.nii.gz"
    if scan is not None and content is not None:
        scan.write_bytes(content)
    answer = curl(served, "small-unet", *arguments, scan=scan).stdout
    assert b"HTTP/1.1 400" in answer
    text = json.loads(answer.rpartition(b"\r\n\r\n")[2])["error"]
    assert said in text or content == b""  # Triton itself refuses an empty body
    assert "\n" not in text
    assert "Traceback" not in text


def test_the_entrys_limit_holds_whatever_a_caller_asks_for(served: Served, tmp_path: Path) -> None:
    """The file of this scan alone has more than LIMIT_MIB."""
    scan = tmp_path / "large.nii"
    header = nib.Nifti1Header()
    header.set_data_shape((400, 400, 600))
    header.set_data_dtype(np.int16)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    with scan.open("wb") as file:
        file.write(header.binaryblock + bytes(4))
        file.truncate(352 + 2 * 400 * 400 * 600)
    answer = curl(served, "small-unet", "-H", "voxtile-max-ram-mib: 100000", scan=scan).stdout
    assert b"HTTP/1.1 400" in answer
    assert b"MiB" in answer
    assert curl(served, "small-unet").stdout.endswith(served.masks["small-unet"])


def streamed(client: InferenceServerClient, name: str, scan: bytes, **parameters: Any) -> list[Any]:
    """All responses of a stream, or the error that ended it."""
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    client.async_stream_infer(
        f"{name}_scan_stream", [tensor(scan)], enable_empty_final_response=True, parameters=parameters
    )
    found: list[Any] = []
    while True:
        result, error = answers.get(timeout=120)
        found.append(error or result)
        if error or result.get_response().parameters["triton_final_response"].bool_param:
            client.stop_stream()
            return found


def test_a_stream_tells_its_progress_and_then_the_mask(served: Served, tmp_path: Path) -> None:
    write_scan(tmp_path / "longer.nii.gz", (90, 80, 70))
    scan = tmp_path / "longer.nii.gz"
    with InferenceServerClient(served.server.grpc_url) as client:
        *before, last = streamed(client, "small-unet", scan.read_bytes())
    shares = [float(answer.as_numpy("progress")[0, 0]) for answer in (*before, last)]
    assert len(before) > 1
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert last.as_numpy("mask").tobytes() == clients_mask(served.server, "small-unet", scan)


def test_a_stream_of_no_scan_ends_with_the_clients_line(served: Served) -> None:
    with InferenceServerClient(served.server.grpc_url) as client:
        (error,) = streamed(client, "small-unet", b"no scan")
    assert "image 1" in str(error)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A scan that takes many batches."""
    path = tmp_path_factory.mktemp("long") / "scan.nii.gz"
    write_scan(path, (150, 150, 140))
    return path.read_bytes()


def executions(served: Served, name: str) -> int:
    with InferenceServerClient(served.server.grpc_url) as client:
        return int(client.get_inference_statistics(name).model_stats[0].execution_count)


def settled(served: Served, name: str) -> int:
    """How often the engine has run, once it runs no more."""
    seen = executions(served, name)
    while True:
        time.sleep(1)
        now = executions(served, name)
        if now == seen:
            return now
        seen = now


@pytest.mark.parametrize("how", ["cancel", "deadline", "stream"])
def test_a_caller_that_goes_away_ends_the_work(served: Served, long: bytes, how: str) -> None:
    engine = "small-unet_openvino"
    before = settled(served, engine)
    told: queue.Queue[Any] = queue.Queue()
    with InferenceServerClient(served.server.grpc_url) as client:
        if how == "stream":
            client.start_stream(lambda result, error: told.put(error))
            client.async_stream_infer("small-unet_scan_stream", [tensor(long)])
        else:
            limit = 2.0 if how == "deadline" else None
            call = client.async_infer(
                "small-unet_scan", [tensor(long)], lambda result, error: told.put(error), client_timeout=limit
            )
        while executions(served, engine) < before + 3:
            time.sleep(0.05)
        if how == "stream":
            client.stop_stream(cancel_requests=True)
        elif how == "cancel":
            call.cancel()
        if how != "stream":
            assert isinstance(told.get(timeout=60), InferenceServerException)
        after = settled(served, engine)
    # All of its 9 × 9 × 8 tiles, four at a time, would be 160 runs.
    assert before + 3 <= after < before + 100
    assert mask_and_report(curl(served, "small-unet").stdout)[0] == served.masks["small-unet"]


def test_of_eight_callers_those_that_find_the_queue_full_are_refused_at_once(served: Served, long: bytes) -> None:
    outcomes: queue.Queue[str | bytes] = queue.Queue()
    with InferenceServerClient(served.server.grpc_url) as client:

        def call() -> None:
            try:
                outcomes.put(client.infer("small-unet_scan", [tensor(long)]).as_numpy("mask").tobytes())
            except InferenceServerException as error:
                outcomes.put(str(error))

        threads = [threading.Thread(target=call) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = [outcomes.get_nowait() for _ in threads]
    masks = {outcome for outcome in found if isinstance(outcome, bytes)}
    refusals = [outcome for outcome in found if isinstance(outcome, str)]
    assert len(masks) == 1
    # One runs, two wait, and Triton may have handed a further one to the instance before it counted.
    assert 3 <= len(found) - len(refusals) <= 4
    assert all("exceeds maximum queue size" in text.lower() for text in refusals)


def test_the_lines_of_the_page_give_the_clients_mask(served: Served, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/how-to/volume.md").read_text(encoding="utf-8")
    for written, real in (
        ("localhost:8000", served.server.http_url),
        ("localhost:8001", served.server.grpc_url),
        ("brain-unet", "small-unet"),
    ):
        page = page.replace(written, real)
    blocks = re.findall(r"```(sh|python)\n(.*?)```", page, re.DOTALL)
    lines = [text for kind, text in blocks if kind == "sh" and ("/infer" in text or "perl" in text)]
    (program,) = (text for kind, text in blocks if kind == "python")
    (tmp_path / "scan.nii.gz").write_bytes(served.scan.read_bytes())
    for command in (["sh", "-ec", "\n".join(lines)], [sys.executable, "-c", program]):
        (tmp_path / "mask.nii.gz").unlink(missing_ok=True)
        subprocess.run(command, cwd=tmp_path, check=True)
        assert (tmp_path / "mask.nii.gz").read_bytes() == served.masks["small-unet"]


def stubs_of(server: EmbeddedServer, model: str) -> list[psutil.Process]:
    """The processes of the server that run a model's Python backend."""
    found = psutil.Process(server.pid).children(recursive=True)
    return [process for process in found if any(f"/{model}/" in word for word in process.cmdline())]


@pytest.mark.parametrize("victim", ["small-unet_openvino", "small-unet_scan"])
def test_a_process_that_dies_in_a_volume_costs_its_caller_an_error_and_no_hang(
    repository: Path, tmp_path: Path, long: bytes, victim: str
) -> None:
    write_volume_entries("small-unet", repository, tmp_path / "volumes")
    told: queue.Queue[Any] = queue.Queue()
    with (
        EmbeddedServer(repository, ServerOptions(volume_repository=tmp_path / "volumes")) as server,
        InferenceServerClient(server.grpc_url) as client,
    ):
        served = Served(server, tmp_path, {})
        before = executions(served, "small-unet_openvino")
        client.async_infer("small-unet_scan", [tensor(long)], lambda result, error: told.put(error))
        while executions(served, "small-unet_openvino") < before + 3:
            time.sleep(0.05)
        stubs = stubs_of(server, victim)
        assert stubs
        for stub in stubs:
            stub.kill()
        assert isinstance(told.get(timeout=120), InferenceServerException)
        assert server.running


def test_a_server_that_is_asked_to_end_in_a_volume_ends(repository: Path, tmp_path: Path, long: bytes) -> None:
    write_volume_entries("small-unet", repository, tmp_path / "volumes")
    told: queue.Queue[Any] = queue.Queue()
    server = EmbeddedServer(repository, ServerOptions(volume_repository=tmp_path / "volumes"))
    with server, InferenceServerClient(server.grpc_url) as client:
        served = Served(server, tmp_path, {})
        client.async_infer("small-unet_scan", [tensor(long)], lambda result, error: told.put(error))
        while executions(served, "small-unet_openvino") < 3:
            time.sleep(0.05)
        server.stop()
        assert isinstance(told.get(timeout=120), InferenceServerException)
        assert server.wait(0) == 0  # by itself, and not killed after a grace period
