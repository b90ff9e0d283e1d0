"""What the real Triton says when it does not answer, and what the client takes it for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from tests.support import tiny_entries as tiny
from voxtile import AccessError, ConnectionConfig, ModelError
from voxtile.triton.endpoint import Endpoint
from voxtile.triton.faults import Fault, classify
from voxtile_server.embedded import EmbeddedServer
from voxtile_server.options import ServerOptions

SLEEP, FAIL, RAISE, END = 1.0, 2.0, 3.0, 4.0
"""What the model does where its input has this value; it gives other values back."""

X, Y = [("x", "TYPE_FP32", (1,))], [("y", "TYPE_FP32", (1,))]
MODEL = """
import os, time
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(pb_utils.get_input_tensor_by_name(one, "x").as_numpy()) for one in requests]

    def answer(self, x):
        value = x.flat[0]
        if value == 1.0:
            time.sleep(0.5)
        elif value == 2.0:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError("no answer to this"))
        elif value == 3.0:
            raise ValueError("raised")
        elif value == 4.0:
            os._exit(1)
        return pb_utils.InferenceResponse([pb_utils.Tensor("y", x)])
"""
QUEUES = {
    "full": {"max_queue_size": 1},
    "late": {"default_timeout_microseconds": 1000, "timeout_action": "REJECT"},
    "ending": {},
}
RESTRICTED = ("--grpc-restricted-protocol=model-repository,statistics:token=abc",)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A server of models that fail, whose list of models needs a token."""
    repository = tmp_path_factory.mktemp("refusing")
    for name, policy in QUEUES.items():
        batching = {"dynamic_batching": {"default_queue_policy": policy}}
        folder = tiny.write_entry(repository, tiny.config(name, "python", X, Y, max_batch_size=1, **batching))
        (folder / "1" / "model.py").write_text(MODEL)
    maps = {"input_map": {"x": "x"}, "output_map": {"y": "y"}}
    steps = {"step": [{"model_name": "full", "model_version": -1, **maps}]}
    tiny.write_entry(repository, tiny.config("outer", "ensemble", X, Y, max_batch_size=1, ensemble_scheduling=steps))
    _add_versions(repository)
    with EmbeddedServer(repository, ServerOptions(ready_timeout_s=120, triton_arguments=RESTRICTED)) as running:
        yield running
        running.kill()


def _add_versions(repository: Path) -> None:
    """An entry with versions 2, 9 and 10."""
    policy = {"version_policy": {"all": {}}}
    folder = tiny.write_entry(repository, tiny.config("versions", "python", X, Y, max_batch_size=1, **policy))
    (folder / "1").rmdir()
    for version in ("2", "9", "10"):
        (folder / version).mkdir()
        (folder / version / "model.py").write_text(MODEL)


def tensor(value: float, shape: tuple[int, ...] = (1, 1)) -> Any:
    made = triton.InferInput("x", shape, "FP32")
    made.set_data_from_numpy(np.full(shape, value, np.float32))
    return made


def faults(server: EmbeddedServer, model: str, *inputs: Any, **request: Any) -> list[Fault]:
    """What the answers to requests that are sent at once mean, those that succeed left out."""
    errors: list[InferenceServerException | None] = []
    came = threading.Semaphore(0)

    def done(result: Any, error: Any) -> None:
        errors.append(error)
        came.release()

    with triton.InferenceServerClient(server.grpc_url) as client:
        for one in inputs:
            client.async_infer(model, [one], done, client_timeout=60, **request)
        for _ in inputs:
            assert came.acquire(timeout=60)
    return [classify(error.status(), error.message()) for error in errors if error]


@pytest.mark.parametrize("model", ["full", "outer", "late"])
def test_a_full_queue_and_a_wait_too_long_ask_for_less(real: EmbeddedServer, model: str) -> None:
    found = faults(real, model, *[tensor(SLEEP)] * 6)
    assert found
    assert set(found) == {Fault.QUEUE_FULL}


@pytest.mark.parametrize(
    ("model", "given", "fault"),
    [
        ("absent", tensor(0), Fault.SERVER_LOST),
        ("outer", tensor(0, (1, 2)), Fault.REFUSED),
        ("outer", tensor(0, (2, 1)), Fault.REFUSED),
        ("outer", tensor(FAIL), Fault.BROKEN),
        ("full", tensor(FAIL), Fault.BROKEN),
        ("full", tensor(RAISE), Fault.BROKEN),
        ("ending", tensor(END), Fault.SERVER_LOST),
    ],
)
def test_what_a_failure_means(real: EmbeddedServer, model: str, given: Any, fault: Fault) -> None:
    assert faults(real, model, given) == [fault]


def test_a_version_that_is_gone_is_a_lost_server(real: EmbeddedServer) -> None:
    assert faults(real, "outer", tensor(0), model_version="7") == [Fault.SERVER_LOST]


def test_memory_that_the_server_does_not_know(real: EmbeddedServer) -> None:
    shared = triton.InferInput("x", (1, 1), "FP32")
    shared.set_shared_memory("voxtile-1-1-1", 4, 0)
    assert faults(real, "outer", shared) == [Fault.MEMORY_FORGOTTEN]


def test_an_answer_repeats_the_requests_id_and_names_the_version_that_metadata_names_last(real: EmbeddedServer) -> None:
    with triton.InferenceServerClient(real.grpc_url) as client:
        for model in ("outer", "versions"):
            answer = client.infer(model, [tensor(7)], request_id="17").get_response()
            assert (answer.id, answer.model_name) == ("17", model)
            assert answer.model_version == client.get_model_metadata(model).versions[-1]


def test_a_call_that_needs_a_token(real: EmbeddedServer) -> None:
    """Triton says it with the status of a server that is gone."""
    asked = Endpoint(real.grpc_url, ConnectionConfig())
    with pytest.raises(AccessError, match=r"the server refuses access \(This protocol is restricted.*--header NAME"):
        asked.models()
    with pytest.raises(ModelError, match=r"model 'absent' is not offered .*; it offers: what it does not tell"):
        asked.model("absent")
    asked.close()
    allowed = Endpoint(real.grpc_url, ConnectionConfig(headers={"triton-grpc-protocol-token": "abc"}))
    assert ("outer", "READY") in allowed.models()
    allowed.close()
