"""Callers of Triton's scan entries that go away, come all at once or mean harm: none hangs, and nothing is left."""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import queue
import socket
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
import pytest
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from tests.support.commands import run
from tests.support.namespaces import own_mounts
from tests.support.served_processes import eventually
from tests.support.whole_scans import (
    LONG,
    LONG_BATCHES,
    clients_mask,
    executions,
    held,
    mask_and_report,
    peak_mib,
    settled,
    streamed,
    stubs_of,
    tensor,
    wait_for_batches,
    write_scan,
)
from voxtile_build.repository.volume import VolumeSettings, write_volume_entries
from voxtile_server.embedded import EmbeddedServer
from voxtile_server.options import ServerOptions

MODEL, ENGINE = "small-unet", "small-unet_openvino"
ENTRY, STREAM = f"{MODEL}_scan", f"{MODEL}_scan_stream"
LIMIT_MIB = 250


@dataclass(frozen=True)
class Served:
    """A server with scan entries, a short scan with the client's mask of it, and a long one that takes `seconds`."""

    server: EmbeddedServer
    short: Path
    long: Path
    mask: bytes
    seconds: float

    @property
    def url(self) -> str:
        return self.server.grpc_url

    def post(self, scan: Path, *arguments: str) -> bytes:
        """Headers and body of Triton's answer to a scan over HTTP."""
        command = ["curl", "-sS", "-i", "-X", "POST", "-H", "Inference-Header-Content-Length: 0", *arguments]
        url = f"http://{self.server.http_url}/v2/models/{ENTRY}/infer"
        return subprocess.run([*command, "-T", str(scan), url], capture_output=True, check=True).stdout

    def serves(self) -> bool:
        """Whether the short scan still gets its mask."""
        return mask_and_report(self.post(self.short))[0] == self.mask


@contextlib.contextmanager
def serving(repository: Path, root: Path) -> Iterator[EmbeddedServer]:
    """A server with room for a caller that runs and two that wait, and with a folder of its own for temporary files."""
    (root / "temporary").mkdir()
    write_volume_entries(MODEL, repository, root / "volumes", VolumeSettings(queue=2, max_ram_mib=LIMIT_MIB))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(root / "temporary"))
        server = EmbeddedServer(repository, ServerOptions(http_port=0, volume_repository=root / "volumes"))
        server.start()
    try:
        yield server
    finally:
        server.kill()
        server.stop()


@pytest.fixture(scope="module")
def served(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("callers")
    short, long = write_scan(root / "short.nii.gz", (41, 50, 38)), write_scan(root / "long.nii.gz", LONG)
    with serving(repository, root) as server:
        mask, before = clients_mask(server.grpc_url, MODEL, short), settled(server.grpc_url, ENGINE)
        start = time.monotonic()
        clients_mask(server.grpc_url, MODEL, long)
        seconds = time.monotonic() - start
        assert settled(server.grpc_url, ENGINE) == before + LONG_BATCHES
        yield Served(server, short, long, mask, seconds)


# Callers that go away ------------------------------------------------------------------------------------------


def call_and_go(served: Served, how: str, first: int) -> None:
    """Sends the long scan, and goes away once the engine has run `first` batches, or at a deadline in its middle."""
    told: queue.Queue[Any] = queue.Queue()
    scan = served.long.read_bytes()
    if how == "server-sent events":
        url = f"http://{served.server.http_url}/v2/models/{STREAM}/generate_stream"
        command = ["curl", "-sSN", "-H", "Content-Type: application/json", "--data-binary", "@-", url]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as caller:
            assert caller.stdin is not None
            caller.stdin.write(json.dumps({"scan_base64": base64.b64encode(scan).decode()}).encode())
            caller.stdin.close()
            wait_for_batches(served.url, ENGINE, first)
            caller.kill()
        return
    with InferenceServerClient(served.url) as client:
        if how == "stream":
            client.start_stream(lambda result, error: told.put(error))
            client.async_stream_infer(STREAM, [tensor(scan)])
            wait_for_batches(served.url, ENGINE, first)
            client.stop_stream(cancel_requests=True)
            return
        limit = 0.4 * served.seconds if how == "deadline" else None
        call = client.async_infer(ENTRY, [tensor(scan)], lambda result, error: told.put(error), client_timeout=limit)
        if how == "cancel":
            wait_for_batches(served.url, ENGINE, first)
            call.cancel()
        assert isinstance(told.get(timeout=60), InferenceServerException)


@pytest.mark.parametrize("how", ["cancel", "deadline", "stream", "server-sent events"])
def test_a_caller_that_goes_away_ends_the_work_and_leaves_nothing(served: Served, how: str) -> None:
    entry = STREAM if how in ("stream", "server-sent events") else ENTRY
    assert served.serves()
    with InferenceServerClient(served.url) as client:
        streamed(client, MODEL, [tensor(served.short.read_bytes())])
    before = settled(served.url, ENGINE)
    now = held(served.server, entry)
    at_rest = now()
    call_and_go(served, how, before + 3)
    after = settled(served.url, ENGINE)
    assert before < after < before + LONG_BATCHES
    assert eventually(lambda: now() == at_rest), (at_rest, now())
    assert served.serves()


def test_whoever_goes_while_waiting_is_never_begun(served: Served) -> None:
    before = settled(served.url, ENGINE)
    told: queue.Queue[Any] = queue.Queue()
    with InferenceServerClient(served.url) as client:
        long = tensor(served.long.read_bytes())
        calls = [client.async_infer(ENTRY, [long], lambda result, error: told.put(error)) for _ in range(2)]
        wait_for_batches(served.url, ENGINE, before + 3)
        for call in reversed(calls):
            call.cancel()
        for _ in calls:
            assert isinstance(told.get(timeout=60), InferenceServerException)
    assert settled(served.url, ENGINE) < before + LONG_BATCHES
    assert served.serves()


def test_of_eight_callers_those_that_find_the_queue_full_are_refused_at_once(served: Served) -> None:
    outcomes: queue.Queue[str | bytes] = queue.Queue()
    scan = served.long.read_bytes()
    with InferenceServerClient(served.url) as client:

        def call() -> None:
            try:
                outcomes.put(client.infer(ENTRY, [tensor(scan)]).as_numpy("mask").tobytes())
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
    # They were refused before the first mask was there.
    assert all(isinstance(outcome, str) for outcome in found[: len(refusals)])


# Callers that mean harm ----------------------------------------------------------------------------------------


def test_uploads_that_stop_keep_nobody_from_being_served(served: Served) -> None:
    host, port = served.server.http_url.split(":")
    head = f"POST /v2/models/{ENTRY}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n"
    with contextlib.ExitStack() as stack:
        for _ in range(40):
            slow = stack.enter_context(socket.create_connection((host, int(port))))
            slow.sendall(f"{head}Inference-Header-Content-Length: 0\r\n\r\n12".encode())
        assert served.serves()


def header(shape: tuple[int, ...], offset: float = 352) -> bytes:
    """The first 352 bytes of a NIfTI file."""
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(np.int16)
    header["vox_offset"], header["magic"] = offset, b"n+1"
    return bytes(header.binaryblock + bytes(4))


def voxels(shape: tuple[int, ...]) -> bytes:
    return bytes(np.random.default_rng(5).integers(1, 900, shape).astype(np.int16).tobytes(order="F"))


SMALL = (34, 36, 38)
ZEROS = gzip.compress(bytes(50_000_000)) * 20
"""A gigabyte of zeros in one megabyte."""


@pytest.mark.parametrize(
    ("bomb", "said"),
    [
        # What follows the voxels is not read.
        pytest.param(gzip.compress(header(SMALL) + voxels(SMALL)) + ZEROS, b"", id="small, and a tail"),
        pytest.param(gzip.compress(header((1000, 1000, 500))) + ZEROS, b"need 954 MiB", id="as large as it claims"),
        pytest.param(gzip.compress(header((9999, 9999, 9999))) + ZEROS, b"header claims", id="larger than possible"),
        pytest.param(gzip.compress(header(SMALL, 9e8)) + ZEROS, b"image 1", id="voxels behind a gap"),
        pytest.param(gzip.compress(gzip.compress(ZEROS)), b"another gzip file", id="packed three times"),
        pytest.param(ZEROS, b"nothing but zeros", id="zeros alone"),
    ],
)
def test_a_bomb_takes_no_memory(served: Served, tmp_path: Path, bomb: bytes, said: bytes) -> None:
    scan = tmp_path / "bomb.nii.gz"
    scan.write_bytes(bomb)
    assert served.serves()
    (stub,) = stubs_of(served.server, ENTRY)
    before = peak_mib(stub)
    answer = served.post(scan)
    assert (b"HTTP/1.1 400" in answer) == bool(said)
    assert said in answer
    assert peak_mib(stub) < max(before, LIMIT_MIB)
    assert served.serves()


# Processes that die, and a server that ends --------------------------------------------------------------------


@pytest.mark.parametrize("victim", [ENGINE, ENTRY])
def test_a_process_that_dies_in_a_volume_costs_its_caller_an_error_and_no_hang(
    repository: Path, served: Served, tmp_path: Path, victim: str
) -> None:
    told: queue.Queue[Any] = queue.Queue()
    with serving(repository, tmp_path) as server, InferenceServerClient(server.grpc_url) as client:
        before = executions(server.grpc_url, ENGINE)
        long = tensor(served.long.read_bytes())
        client.async_infer(ENTRY, [long], lambda result, error: told.put(error))
        wait_for_batches(server.grpc_url, ENGINE, before + 3)
        stubs = stubs_of(server, victim)
        assert stubs
        for stub in stubs:
            stub.kill()
        error = told.get(timeout=120)
        assert isinstance(error, InferenceServerException)
        # Triton 24.10 starts no other process. Whoever comes next is told, and waits for no retries.
        for _ in range(2):
            with pytest.raises(InferenceServerException, match="is not healthy") as raised:
                client.infer(ENTRY, [tensor(served.short.read_bytes())], client_timeout=100)
            assert "failed 4 times" not in str(raised.value)
        assert server.running
        assert clients_mask(server.grpc_url, "identity", served.short)  # others are served as before
        told_by = run("doctor", "--url", server.grpc_url)
        assert told_by.exit_code == (2 if victim == ENTRY else 0)  # a dead engine is another matter
        failed = [line for line in told_by.stdout.splitlines() if line.startswith("FAIL")]
        assert [ENTRY in line and "is not healthy" in line for line in failed] == [True] * (victim == ENTRY)
        assert (
            f"{STREAM} at {server.grpc_url}: its process answers; it segments whole scans with {MODEL}"
            in told_by.stdout
        )


def test_a_server_that_is_asked_to_end_in_a_volume_ends(repository: Path, served: Served, tmp_path: Path) -> None:
    told: queue.Queue[Any] = queue.Queue()
    with serving(repository, tmp_path) as server, InferenceServerClient(server.grpc_url) as client:
        long = tensor(served.long.read_bytes())
        client.async_infer(ENTRY, [long], lambda result, error: told.put(error))
        wait_for_batches(server.grpc_url, ENGINE, 3)
        server.stop()
        assert isinstance(told.get(timeout=120), InferenceServerException)
        assert server.wait(0) == 0  # by itself, and not killed after a grace period


# Little shared memory ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def command_with_shared_memory(mib: int, repository: Path, root: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """`voxtile-server` where /dev/shm has so many MiB, and the file that it writes when it is ready."""
    write_volume_entries(MODEL, repository, root / "volumes")
    models = ["--load-model", MODEL, "--load-model", ENTRY, "--model-control-mode", "explicit"]
    mount = f'mount -t tmpfs -o size={mib}m tmpfs /dev/shm && exec "$0" "$@"'
    ready = root / "ready.json"
    command = [
        *(own_mounts() or ()), "sh", "-c", mount, sys.executable, "-m", "voxtile_server", "--repository",
        str(repository), "--volume-repository", str(root / "volumes"), "--http-port", "0", "--grpc-port", "0",
        "--ready-file", str(ready), *models,
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process, ready
        finally:
            process.terminate()


@pytest.mark.skipif(own_mounts() is None, reason="this machine allows no mounts of one's own")
def test_a_scan_that_shared_memory_has_no_room_for_is_refused_and_others_are_served(
    repository: Path, served: Served, tmp_path: Path
) -> None:
    large = tmp_path / "large.nii"
    large.write_bytes(gzip.decompress(served.short.read_bytes()))
    with large.open("r+b") as file:
        file.truncate(190 << 20)
    with command_with_shared_memory(200, repository, tmp_path) as (process, ready):
        assert eventually(lambda: ready.exists() or process.poll() is not None, within_s=100)
        there = json.loads(ready.read_text())
        with InferenceServerClient(there["grpc_url"]) as client:

            def mask(scan: Path) -> bytes:
                found: bytes = client.infer(ENTRY, [tensor(scan.read_bytes())]).as_numpy("mask").tobytes()
                return found

            assert mask(served.short) == served.mask
            with pytest.raises(InferenceServerException, match=r"shared memory.*No space left on device"):
                mask(large)
            assert mask(served.short) == served.mask


@pytest.mark.skipif(own_mounts() is None, reason="this machine allows no mounts of one's own")
def test_a_container_with_the_usual_64_mib_is_told_so_in_one_line(repository: Path, tmp_path: Path) -> None:
    with command_with_shared_memory(64, repository, tmp_path) as (process, ready):
        _, error = process.communicate(timeout=200)
        assert process.returncode == 2
        assert not ready.exists()
        (line,) = [line for line in error.splitlines() if line.startswith("error: ")]  # after what it loads
        assert "Traceback" not in error
        assert "shared memory" in line
        assert "No space left on device" in line or "--shm-size" in line  # now and then Triton ends without a word
