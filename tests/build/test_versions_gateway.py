"""A public name that moves behind the gateway: each mask is of one version, and no caller is refused."""

from __future__ import annotations

import gzip
import json
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nibabel.nifti1 import Nifti1Image

from tests.build.test_versions_served import eventually, polling, served
from tests.support.gateways import Called, gateway, gateway_here, put
from tests.support.versioned import NAME, mask_of, scan, two_versions
from voxtile_build.promoting import promote, rollback
from voxtile_server.embedded import EmbeddedServer
from voxtile_server.gateway.settings import Settings
from voxtile_server.options import ServerOptions

MOVES = (2, 1, 2, 1)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return two_versions(tmp_path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    scan().to_filename(tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


def check(mask: bytes, report: dict[str, Any]) -> int:
    """The version that made a mask, by its report, its passport and its voxels."""
    found = np.asarray(Nifti1Image.from_bytes(gzip.decompress(mask)).dataobj)
    number = int(report["version"])
    np.testing.assert_array_equal(found == 1, mask_of(number, scan()))
    assert report["passport"]["version"] == str(number)
    return number


def at_once(called: Called, file: Path) -> int:
    """A mask by one request."""
    status, headers, body = called.curl(f"/v1/models/{NAME}/mask", *put(file))
    assert status == 200, body
    return check(body, json.loads(headers["voxtile-report"]))


def as_a_job(called: Called, file: Path) -> int:
    """A mask by a job that is watched and fetched."""
    status, _, body = called.curl(f"/v1/models/{NAME}/jobs", *put(file))
    assert status == 202, body
    place = f"/v1/jobs/{json.loads(body)['id']}"
    status, _, events = called.curl(place, "-H", "Accept: text/event-stream")
    assert status == 200
    last = json.loads(events.decode().rstrip().rpartition("data: ")[2])
    assert last["state"] == "done", last
    _, _, mask = called.curl(f"{place}/mask")
    assert called.curl(place, "-X", "DELETE")[0] == 204
    return check(mask, last["report"])


@pytest.mark.parametrize("mode", ["poll", "on demand"])
def test_a_name_moves_behind_the_gateway_under_load(repository: Path, file: Path, tmp_path: Path, mode: str) -> None:
    stop, done, failures = threading.Event(), Counter[int](), list[BaseException]()
    server = (
        polling(repository) if mode == "poll" else EmbeddedServer(repository, ServerOptions(max_models=2, threads=1))
    )
    with server as running, gateway(tmp_path / "gateway", "--url", running.grpc_url, "--at-once", "2") as called:

        def client(ask: Callable[[Called, Path], int]) -> None:
            try:
                while not stop.is_set():
                    done[ask(called, file)] += 1
            except BaseException as error:
                failures.append(error)

        def went_on(number: int, before: int) -> bool:
            return failures != [] or done[number] > before + 2

        threads = [threading.Thread(target=client, args=(ask,)) for ask in (at_once, as_a_job, at_once)]
        for thread in threads:
            thread.start()
        try:
            eventually(partial(went_on, 1, 0))
            for number in MOVES:
                before = done[number]
                (promote(NAME, number, repository) if number == 2 else rollback(NAME, repository))
                eventually(partial(went_on, number, before))
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert failures == []


def test_a_scan_that_is_on_its_way_behind_the_gateway_ends_with_its_version_and_the_next_has_the_new_one(
    repository: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from voxtile_server.gateway import intake

    real, moved = intake.make_mask, threading.Event()

    async def make(segmenter: Any, job: Any, progress: Callable[[int, int], None]) -> Any:
        def moving(tile: int, tiles: int) -> None:
            if tile >= 3 and not moved.is_set():
                assert tile < tiles - 10, "tiles are left to be sent"
                promote(NAME, 2, repository)
                eventually(lambda: served(url, NAME) == "2")
                moved.set()
            progress(tile, tiles)

        return await real(segmenter, job, moving)

    monkeypatch.setattr(intake.Intake.begin, "__defaults__", (make,))
    (tmp_path / "spool").mkdir()
    with polling(repository) as running:
        url = running.grpc_url
        with gateway_here(Settings(urls=(url,), folder=tmp_path / "spool")) as called:
            assert [at_once(called, file), at_once(called, file)] == [1, 2]
            assert moved.is_set()
            rollback(NAME, repository)
            eventually(lambda: served(url, NAME) == "1")
            assert at_once(called, file) == 1
