"""Callers of the gateway that mean harm, and a server behind it that fails: memory is bounded, and nobody hangs."""

from __future__ import annotations

import gzip
import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest

from tests.support.gateways import MODEL, Gateway, gateway, put
from tests.support.served_processes import eventually
from tests.support.shared_regions import names_of
from tests.support.whole_scans import LONG, LONG_BATCHES, clients_mask, peak_mib, settled, wait_for_batches, write_scan
from voxtile_server.embedded import EmbeddedServer

ENGINE = "small-unet_openvino"
MOST_MIB = 700
"""Of the gateway's process for one scan."""
MASK = f"/v1/models/{MODEL}/mask"


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scan(tmp_path_factory.mktemp("scan") / "short.nii.gz", (41, 50, 38))


@pytest.fixture(scope="module")
def one(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One scan at once, two waiting."""
    limits = ("--waiting", "2", "--max-upload", "100", "--max-ram", str(MOST_MIB), "--upload-timeout", "2")
    with gateway(tmp_path_factory.mktemp("gateway"), "--url", server.grpc_url, *limits) as running:
        yield running


def header(shape: tuple[int, ...]) -> bytes:
    found = nib.Nifti1Header()
    found.set_data_shape(shape)
    found.set_data_dtype(np.int16)
    found["vox_offset"], found["magic"] = 352, b"n+1"
    return bytes(found.binaryblock + bytes(4))


SMALL = (34, 36, 38)
VOXELS = np.random.default_rng(5).integers(1, 900, SMALL).astype(np.int16).tobytes()
ZEROS = gzip.compress(bytes(50_000_000)) * 20
"""A gigabyte of zeros in one megabyte."""


@pytest.mark.parametrize(
    ("bomb", "status"),
    [
        # What follows the voxels is not read.
        pytest.param(gzip.compress(header(SMALL) + VOXELS) + ZEROS, 200, id="small, and a tail"),
        pytest.param(gzip.compress(header((1000, 1000, 500))) + ZEROS, 413, id="as large as it claims"),
        pytest.param(gzip.compress(header((9999, 9999, 9999))) + ZEROS, 422, id="larger than possible"),
        pytest.param(gzip.compress(gzip.compress(ZEROS)), 422, id="packed three times"),
        pytest.param(ZEROS, 422, id="zeros alone"),
    ],
)
def test_a_bomb_takes_no_memory(one: Gateway, tmp_path: Path, bomb: bytes, status: int) -> None:
    scan = tmp_path / "bomb.nii.gz"
    scan.write_bytes(bomb)
    assert one.curl(MASK, *put(scan))[0] == status
    assert peak_mib(psutil.Process(one.process.pid)) < MOST_MIB


def test_a_body_of_3_gb_takes_neither_memory_nor_disk(one: Gateway, tmp_path: Path) -> None:
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(3_000_000_000)
    for words in ((), ("-H", "Transfer-Encoding: chunked")):
        assert one.error(MASK, *put(large), *words)[0] == 413
    assert peak_mib(psutil.Process(one.process.pid)) < MOST_MIB
    assert eventually(lambda: sum(file.stat().st_size for file in one.folder.rglob("*") if file.is_file()) == 0)


def test_uploads_that_stop_give_their_places_back(one: Gateway, short: Path, server: EmbeddedServer) -> None:
    host, port = one.url.removeprefix("http://").split(":")
    head = f"POST {MASK} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n12".encode()
    slow = [socket.create_connection((host, int(port))) for _ in range(20)]
    for connection in slow:
        connection.sendall(head)
    wanted = clients_mask(server.grpc_url, MODEL, short)
    assert eventually(lambda: one.curl(MASK, *put(short))[2] == wanted)
    for connection in slow:
        connection.close()


def test_of_eight_callers_three_are_taken_and_the_rest_refused_at_once(one: Gateway, tmp_path: Path) -> None:
    long = write_scan(tmp_path / "long.nii.gz", LONG)
    calls = [
        subprocess.Popen(
            ["curl", "-sS", *put(long), f"{one.url}/v1/models/{MODEL}/jobs"], stdout=subprocess.PIPE, text=True
        )
        for _ in range(8)
    ]
    told = [json.loads(call.communicate()[0]) for call in calls]
    taken = [answer["id"] for answer in told if "id" in answer]
    refused = [answer["error"] for answer in told if "id" not in answer]
    assert (len(taken), len(refused)) == (3, 5)
    assert all("3 scans are running or waiting already" in error for error in refused)
    for number in reversed(taken):
        assert one.curl(f"/v1/jobs/{number}", "-X", "DELETE")[0] == 204


def test_a_caller_that_goes_leaves_no_thread_and_no_file(
    one: Gateway, short: Path, server: EmbeddedServer, tmp_path: Path
) -> None:
    long = write_scan(tmp_path / "long.nii.gz", LONG)
    process = psutil.Process(one.process.pid)
    assert one.curl(MASK, *put(short))[0] == 200

    def held() -> tuple[int, list[str]]:
        return process.num_fds(), sorted(str(path) for path in one.folder.rglob("*"))

    assert eventually(lambda: len(held()[1]) == 1)
    regions = names_of(process.pid)
    threads, before = process.num_threads(), settled(server.grpc_url, ENGINE)
    for _ in range(2):
        caller = subprocess.Popen(["curl", "-sS", *put(long), f"{one.url}{MASK}"], stdout=subprocess.DEVNULL)
        wait_for_batches(server.grpc_url, ENGINE, before + 3)
        caller.kill()
        caller.wait()
        before = settled(server.grpc_url, ENGINE)
    assert eventually(lambda: len(held()[1]) == 1)
    # Threads of the pool stay for the next scan, as do the regions of the connection; there are not more each time.
    assert process.num_threads() <= threads + 4
    assert len(names_of(process.pid) - regions) <= 12


def test_a_gateway_that_is_asked_to_end_in_a_scan_ends(server: EmbeddedServer, tmp_path: Path) -> None:
    long = write_scan(tmp_path / "long.nii.gz", LONG)
    before = settled(server.grpc_url, ENGINE)
    with gateway(tmp_path / "run", "--url", server.grpc_url) as running:
        caller = subprocess.Popen(["curl", "-sS", *put(long), f"{running.url}{MASK}"], stdout=subprocess.DEVNULL)
        wait_for_batches(server.grpc_url, ENGINE, before + 3)
    # `gateway` has asked it to end, and looked for what it left.
    caller.wait(60)
    assert settled(server.grpc_url, ENGINE) < before + LONG_BATCHES
