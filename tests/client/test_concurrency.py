"""Several threads, an event loop that cancels, and forks; on the real server."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.support.heads import head, image
from tests.support.in_memory import InMemoryTransport
from tests.support.phantoms import card_of
from tests.support.shared_regions import mapped, names_of
from voxtile import ConnectionConfig, Segmenter
from voxtile_server.embedded import EmbeddedServer

SHAPES = ((70, 53, 61), (40, 37, 33), (33, 60, 47))


@pytest.mark.parametrize("shared_memory", [True, False])
def test_threads_on_one_segmenter_get_their_own_results_and_reports(
    server: EmbeddedServer, shared_memory: bool
) -> None:
    scans = [image(head(shape, seed)) for seed, shape in enumerate(SHAPES)]
    connection = ConnectionConfig(shared_memory=shared_memory)
    with Segmenter(server.grpc_url, "small-unet", sw_batch_size=1, connection=connection) as segmenter:
        alone = [segmenter.segment(scan) for scan in scans]
        with ThreadPoolExecutor(6) as pool:
            together = list(pool.map(segmenter.segment, scans * 4))
    for number, result in enumerate(together):
        expected = alone[number % len(scans)]
        np.testing.assert_array_equal(result.labels, expected.labels)
        same = {"tiles", "bytes_sent", "bytes_received", "retries", "shared_memory", "labels", "shape"}
        assert result.report.model_dump(include=same) == expected.report.model_dump(include=same)
    assert not mapped(server.grpc_url)
    assert not names_of(os.getpid())


def pumps() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("voxtile-pump")]


def test_cancelling_stops_the_work(server: EmbeddedServer) -> None:
    done: list[int] = []

    async def cancelled(segmenter: Segmenter) -> float:
        progress: Callable[[int, int], None] = lambda number, _: done.append(number)  # noqa: E731
        work = asyncio.create_task(segmenter.asegment(image(head((160, 160, 160))), progress))
        while len(done) < 3:
            await asyncio.sleep(0.01)
        begun = time.perf_counter()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        return time.perf_counter() - begun

    with Segmenter(server.grpc_url, "small-unet", sw_batch_size=1, overlap=0.75) as segmenter:
        seconds = asyncio.run(cancelled(segmenter))
        assert seconds < 5
        assert not pumps()
        so_far = len(done)
        assert so_far < 8000
        time.sleep(0.3)
        assert len(done) == so_far  # no thread goes on
        assert segmenter.segment(image(head((40, 37, 33)))).report.tiles > 0


def test_cancelling_ends_the_wait_for_a_server_that_is_silent(repository: Path) -> None:
    with EmbeddedServer(repository) as server:

        async def cancelled(segmenter: Segmenter) -> float:
            started = threading.Event()
            work = asyncio.create_task(segmenter.asegment(image(head((90, 90, 90))), lambda *_: started.set()))
            await asyncio.to_thread(started.wait, 60)
            server.kill()
            await asyncio.sleep(0.5)
            begun = time.perf_counter()
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work
            return time.perf_counter() - begun

        with Segmenter(server.grpc_url, "small-unet", sw_batch_size=1, overlap=0.75) as segmenter:
            assert asyncio.run(cancelled(segmenter)) < 20  # the timeout is 120 s


def test_cancelling_a_transport_that_cannot_be_interrupted_stops_after_its_answer() -> None:
    calls: list[int] = []

    def slow(tiles: np.ndarray) -> np.ndarray:
        calls.append(len(tiles))
        time.sleep(0.05)
        return np.concatenate([tiles, tiles], axis=1)

    async def cancelled(segmenter: Segmenter) -> None:
        work = asyncio.create_task(segmenter.asegment(image(head((60, 60, 60)))))
        while not calls:
            await asyncio.sleep(0.01)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work

    with Segmenter(transport=InMemoryTransport(card_of(), slow), sw_batch_size=1) as segmenter:
        asyncio.run(cancelled(segmenter))
    assert len(calls) < 10


FORKED = """
import os, signal, sys
import numpy as np
from voxtile import ForkError, RemoteNetwork

x = np.ones((4, 1, 16, 24, 8), np.float32)
network = RemoteNetwork({url!r}, "identity")
assert (network(x) == x).all()
child = os.fork()
if child == 0:
    signal.alarm(30)  # ends a child that hangs
    try:
        with network:
            network(x)
    except ForkError as error:
        print(error, flush=True)
    with RemoteNetwork({url!r}, "identity") as own:
        os._exit(0 if (own(x) == x).all() else 1)
_, status = os.waitpid(child, 0)
assert status == 0, status
assert (network(x) == x).all()  # the child has closed nothing of the parent's
network.close()
"""


def test_a_fork_gets_a_clear_error_and_may_connect_for_itself(server: EmbeddedServer) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKED.format(url=server.grpc_url)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "a fork cannot share it; make a Segmenter or RemoteNetwork in each process" in done.stdout
