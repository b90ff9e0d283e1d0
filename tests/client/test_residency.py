"""Models loaded on demand by a real server: more of them than may be loaded at once, asked for by several clients."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import psutil
import pytest
from tritonclient.grpc import InferenceServerClient

from tests.support.gateways import gateway_here, put
from tests.support.whole_scans import stubs_of, write_scan
from voxtile import ModelError, OtherBuildError, Segmenter
from voxtile.triton.catalogue import ModelListing, list_models
from voxtile.triton.connection import ConnectionConfig
from voxtile.triton.endpoint import Endpoint
from voxtile_server.embedded import EmbeddedServer
from voxtile_server.errors import ServerError
from voxtile_server.gateway.settings import Settings
from voxtile_server.options import ServerOptions
from voxtile_server.residency import rules
from voxtile_server.residency.door import ENTRY

MODELS = ("identity", "small-unet", "small-unet-int16")
SOON_S = 60  # for what should happen within a second or two


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models make room at once when they are not in use; nobody waits for the end of a pause."""
    monkeypatch.setattr(rules, "GRACE_S", 1.0)
    monkeypatch.setattr(rules, "PACE", 0.0)


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scan of some dozens of tiles."""
    return write_scan(tmp_path_factory.mktemp("scan") / "scan.nii.gz", (70, 60, 50))


@pytest.fixture(scope="module")
def expected(server: EmbeddedServer, scan: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The mask of each model, from a server that has all of them loaded."""
    return {name: mask(server.grpc_url, name, scan) for name in MODELS}


def mask(url: str, model: str, scan: Path, **options: Any) -> np.ndarray[Any, Any]:
    with Segmenter(url, model, sw_batch_size=1, **options) as segmenter:
        return np.asarray(segmenter.segment(scan).mask.dataobj)


@contextlib.contextmanager
def on_demand(repository: Path, **options: Any) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(repository, ServerOptions(**options)) as server:
        yield server
        server.kill()


@contextlib.contextmanager
def watched(server: EmbeddedServer) -> Iterator[list[set[str]]]:
    """The public models that Triton itself called ready, or not yet gone, at each moment within the block."""
    seen: list[set[str]] = []
    ended = threading.Event()
    client = InferenceServerClient(server.grpc_url)

    def watch() -> None:
        while not ended.wait(0.02):
            index = client.get_model_repository_index(headers=server.key_header).models
            seen.append({one.name for one in index if one.name in MODELS and one.state in ("READY", "UNLOADING")})

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()
        client.close()


def listed(server: EmbeddedServer) -> dict[str, ModelListing]:
    with contextlib.closing(Endpoint(server.grpc_url, ConnectionConfig())) as endpoint:
        return {one.name: one for one in list_models(endpoint)}


def loads(server: EmbeddedServer, entry: str) -> int:
    return len(re.findall(rf'"loading: {entry}:1"', server.log_file.read_text()))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def tree_mib(server: EmbeddedServer) -> float:
    """The memory of tritonserver and its processes, without what they share."""
    process = psutil.Process(server.pid)
    return sum(one.memory_full_info().uss for one in [process, *process.children(recursive=True)]) / 2**20


def test_more_models_than_may_be_loaded_serve_all_clients(
    repository: Path, scan: Path, expected: dict[str, np.ndarray[Any, Any]]
) -> None:
    with on_demand(repository, max_models=1) as server, watched(server) as seen, ThreadPoolExecutor(6) as clients:
        asked = [*MODELS, *MODELS]
        masks = list(clients.map(lambda name: mask(server.grpc_url, name, scan), asked))
        for name, found in zip(asked, masks, strict=True):
            np.testing.assert_array_equal(found, expected[name], err_msg=name)
    assert max(map(len, seen)) == 1
    assert set().union(*seen) == set(MODELS)


def test_models_in_use_take_turns_and_no_scan_fails(
    repository: Path, scan: Path, server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both models are always in use, and each scan goes on only after the other's model was loaded in its middle."""
    monkeypatch.setattr(rules, "GRACE_S", 1e9)
    monkeypatch.setattr(rules, "TURN_S", 0.5)
    full, pair = server, ("small-unet", "small-unet-int16")
    with on_demand(repository, max_models=1) as server, watched(server) as seen, ThreadPoolExecutor(2) as clients:

        def interrupted(name: str, other: str) -> np.ndarray[Any, Any]:
            before: list[int] = []

            def wait_for_the_other(*_: object) -> None:
                if not before:
                    before.append(loads(server, other))
                    wait_until(lambda: loads(server, other) > before[0])

            with Segmenter(server.grpc_url, name, sw_batch_size=1, overlap=0.75) as segmenter:
                return np.asarray(segmenter.segment(scan, wait_for_the_other).mask.dataobj)

        masks = list(clients.map(interrupted, pair, reversed(pair)))
        assert min(loads(server, f"{name}_openvino") for name in pair) > 1
    assert max(map(len, seen)) == 1
    for name, found in zip(pair, masks, strict=True):
        np.testing.assert_array_equal(found, mask(full.grpc_url, name, scan, overlap=0.75), err_msg=name)


def test_clients_that_ask_at_once_load_a_model_once(repository: Path, scan: Path) -> None:
    with on_demand(repository, max_models=2) as server, ThreadPoolExecutor(4) as clients:
        list(clients.map(lambda _: mask(server.grpc_url, "identity", scan), range(4)))
        assert loads(server, "identity") == loads(server, "identity_onnxruntime") == 1


def test_an_idle_model_is_unloaded_with_its_engine_and_gives_its_memory_back(
    repository: Path, scan: Path, expected: dict[str, np.ndarray[Any, Any]]
) -> None:
    with on_demand(repository, idle_s=2.0) as server:
        before = tree_mib(server)
        assert not any(one.loaded for one in listed(server).values())
        mask(server.grpc_url, "small-unet", scan)
        (stub,) = stubs_of(server, "small-unet_openvino")
        taken = tree_mib(server)
        assert taken > before + 20, "an engine and its libraries take more"
        wait_until(lambda: not listed(server)["small-unet"].loaded)
        wait_until(lambda: not stub.is_running())
        assert tree_mib(server) < before + (taken - before) / 2
        np.testing.assert_array_equal(mask(server.grpc_url, "small-unet", scan), expected["small-unet"])


def test_all_models_are_listed_with_their_cards_and_the_list_loads_none(
    repository: Path, server: EmbeddedServer
) -> None:
    with on_demand(repository, max_models=1) as lazy:
        all_loaded, on_disk = listed(server), listed(lazy)
        assert {name: one.card for name, one in on_disk.items()} == {name: one.card for name, one in all_loaded.items()}
        assert not any(one.problem or one.loaded for one in on_disk.values())
        assert all(", not loaded" in " ".join(one.row()) for one in on_disk.values())
        assert lazy.ready_models() == []
        assert [name for name in all_loaded if loads(lazy, name)] == []


def test_a_model_that_cannot_be_loaded_gives_its_reason_and_stops_no_other(
    repository: Path, tmp_path: Path, scan: Path, expected: dict[str, np.ndarray[Any, Any]]
) -> None:
    broken = tmp_path / "models"
    shutil.copytree(repository, broken)
    (broken / "small-unet_openvino" / "1" / "model.xml").write_text("no graph")
    (broken / "identity-int16" / "config.pbtxt").write_text("name: what\x00")
    with on_demand(broken, max_models=1) as server:
        for name, reason in (("small-unet", "small-unet_openvino: "), ("identity-int16", "poll")):
            with pytest.raises(ModelError, match=f"'{name}' cannot be loaded by .*{reason}") as refused:
                mask(server.grpc_url, name, scan)
            assert "\n" not in str(refused.value)
        for name in ("none", "small-unet_openvino", "../models/identity", ENTRY, "identity/", "ä"):
            with pytest.raises(ModelError, match=r"no model of that name; it has: ident|carries no card"):
                mask(server.grpc_url, name, scan)
        np.testing.assert_array_equal(mask(server.grpc_url, "identity", scan), expected["identity"])
        assert stubs_of(server, "small-unet_openvino") == []


def test_a_scan_is_not_gone_on_with_by_another_build(repository: Path, tmp_path: Path, scan: Path) -> None:
    """The model is unloaded in the middle of the scan, and what is loaded again is another build of it."""
    changed = tmp_path / "models"
    shutil.copytree(repository, changed)
    config = changed / "small-unet" / "config.pbtxt"
    with on_demand(changed, max_models=1, idle_s=1.0) as server:
        replaced = False

        def replace(*_: object) -> None:
            nonlocal replaced
            if not replaced:
                wait_until(lambda: not listed(server)["small-unet"].loaded)
                config.write_text(config.read_text().replace("three labels of nothing", "another build of it"))
                replaced = True

        with (
            Segmenter(server.grpc_url, "small-unet", sw_batch_size=1, overlap=0.75, in_flight=1) as segmenter,
            pytest.raises(OtherBuildError),
        ):
            segmenter.segment(scan, replace)
        assert replaced


def test_the_gateway_serves_models_that_are_not_loaded(
    repository: Path, tmp_path: Path, scan: Path, expected: dict[str, np.ndarray[Any, Any]]
) -> None:
    (spool := tmp_path / "spool").mkdir()
    with (
        on_demand(repository, max_models=1) as server,
        gateway_here(Settings(urls=(server.grpc_url,), folder=spool)) as gateway,
    ):
        status, _, body = gateway.curl("/v1/models")
        assert status == 200
        assert {one["name"] for one in json.loads(body)} >= set(MODELS)
        for name in MODELS:
            status, _, body = gateway.curl(f"/v1/models/{name}/mask", *put(scan))
            assert status == 200, body
            (tmp_path / "mask.nii.gz").write_bytes(body)
            np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "mask.nii.gz").dataobj), expected[name])


def test_callers_of_the_gateway_that_wait_for_a_model_stop_nobody_else(
    repository: Path,
    tmp_path: Path,
    scan: Path,
    expected: dict[str, np.ndarray[Any, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """More of them than the event loop has threads, for a model that is not loaded while another is in use."""
    monkeypatch.setattr(rules, "GRACE_S", 1e9)
    monkeypatch.setattr(rules, "TURN_S", 1e9)
    (spool := tmp_path / "spool").mkdir()
    threads = min(32, (os.cpu_count() or 1) + 4)
    with (
        on_demand(repository, max_models=1) as server,
        gateway_here(Settings(urls=(server.grpc_url,), folder=spool, waiting=threads + 4)) as gateway,
        ThreadPoolExecutor(threads + 1) as clients,
    ):

        def mask_of(name: str) -> np.ndarray[Any, Any]:
            status, _, body = gateway.curl(f"/v1/models/{name}/mask", *put(scan))
            assert status == 200, body
            return np.asarray(nib.Nifti1Image.from_bytes(gzip.decompress(body)).dataobj)

        np.testing.assert_array_equal(mask_of("identity"), expected["identity"])
        waiting = [clients.submit(mask_of, "small-unet") for _ in range(threads + 1)]
        wait_until(lambda: len(list(spool.glob("*/*"))) == len(waiting))
        np.testing.assert_array_equal(mask_of("identity"), expected["identity"])
        assert gateway.curl("/health/ready")[0] == 200
        assert not any(one.done() for one in waiting)
        monkeypatch.setattr(rules, "GRACE_S", 0.0)
        for one in waiting:
            np.testing.assert_array_equal(one.result(), expected["small-unet"])


def test_a_server_that_is_started_again_serves_on_demand_again(
    repository: Path, scan: Path, expected: dict[str, np.ndarray[Any, Any]]
) -> None:
    with on_demand(repository, max_models=1) as server:
        mask(server.grpc_url, "identity", scan)
        server.kill()
        server.start()
        np.testing.assert_array_equal(mask(server.grpc_url, "identity", scan), expected["identity"])


def test_a_repository_with_an_entry_of_the_doors_name_is_refused(repository: Path, tmp_path: Path) -> None:
    taken = tmp_path / "models"
    shutil.copytree(repository / "identity", taken / ENTRY)
    with pytest.raises(ServerError, match=f"{ENTRY} has a name that --max-models and --idle use"):
        EmbeddedServer(taken, ServerOptions(max_models=1)).start()
