"""`voxtile doctor` names each entry for whole scans that cannot be used; without its model, one stops no server."""

from __future__ import annotations

import json
import queue
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tritonclient.grpc import InferenceServerClient, model_config_pb2, service_pb2

from tests.support.commands import run
from tests.support.fake_triton import FakeTriton
from tests.support.whole_scans import LONG, tensor, write_scan
from voxtile import ConnectionConfig
from voxtile.cli.scan_entries import entry_of
from voxtile_build.repository.volume import VolumeSettings, write_volume_entries
from voxtile_server.embedded import EmbeddedServer
from voxtile_server.options import ServerOptions


def changed(folder: Path, change: Callable[[str], str]) -> None:
    config = folder / "config.pbtxt"
    config.write_text(change(config.read_text()))


def test_each_entry_is_asked_and_a_broken_one_is_named(repository: Path, tmp_path: Path) -> None:
    models = Path(shutil.copytree(repository, tmp_path / "models"))
    volumes = tmp_path / "models-volume"
    for name in ("small-unet", "identity", "identity-int16"):
        write_volume_entries(name, models, volumes, VolumeSettings(queue=1))
    for entry in ("identity", "identity_onnxruntime"):  # by hand: nothing keeps entries in step
        shutil.rmtree(models / entry)
    shutil.rmtree(volumes / "identity_scan_stream")
    long = write_scan(tmp_path / "long.nii.gz", LONG).read_bytes()
    with EmbeddedServer(models, ServerOptions(volume_repository=volumes)) as server:
        url = server.grpc_url
        told = run("doctor", "--url", url)
        assert told.exit_code == 2
        lines = [line for line in told.stdout.splitlines() if "_scan" in line]
        found = {line.split()[1]: line for line in lines}
        assert {name for name, line in found.items() if line.startswith("ok")} == {
            f"{model}_scan{stream}" for model in ("small-unet", "identity-int16") for stream in ("", "_stream")
        }
        assert "FAIL" in found["identity_scan"]
        assert "it needs identity, not offered here" in found["identity_scan"]
        assert "voxtile-build volume identity --remove" in found["identity_scan"]
        assert "identity_scan" not in run("models", "--url", url).stdout  # no model, and no broken one

        with InferenceServerClient(url) as client:
            ended: queue.Queue[Any] = queue.Queue()
            calls = [
                client.async_infer("small-unet_scan", [tensor(long)], lambda result, error: ended.put(error))
                for _ in range(2)
            ]
            told = run("doctor", "--url", url)
            assert f"small-unet_scan at {url}: busy with other scans" in told.stdout
            for call in calls:
                call.cancel()
                ended.get(timeout=60)
        server.kill()


@pytest.mark.parametrize("networks", ["", "[]", "{}", "[1]", "7", json.dumps([{"card": "none"}])])
def test_an_entry_that_names_no_model_is_said_to_be_unusable(networks: str) -> None:
    """Voxtile's backend would not load it; another backend of that name may."""
    config = model_config_pb2.ModelConfig(name="a_scan", backend="voxtile")
    config.parameters["networks"].string_value = networks
    assert "it names no model" in entry_of("127.0.0.1:9", ConnectionConfig(), config, set()).problem


class Answering(FakeTriton):
    """A server that has an answer to everything, in a stream too."""

    def ModelInfer(self, request: Any, context: Any) -> Any:
        return service_pb2.ModelInferResponse(model_name=request.model_name)

    def ModelStreamInfer(self, requests: Any, context: Any) -> Any:
        for one in requests:
            yield service_pb2.ModelStreamInferResponse(infer_response=self.ModelInfer(one, context))


@pytest.mark.parametrize("decoupled", [False, True])
def test_an_entry_that_refuses_nothing_is_said_to_be_unusable(decoupled: bool) -> None:
    """What is asked is no scan, so whoever answers it is none of Voxtile's."""
    config = model_config_pb2.ModelConfig(name="a_scan", backend="voxtile")
    config.parameters["networks"].string_value = json.dumps([{"name": "a"}])
    config.model_transaction_policy.decoupled = decoupled
    with Answering() as server:
        found = entry_of(server.url, ConnectionConfig(), config, {"a"})
    assert "it gave an answer to what is no scan" in found.problem
