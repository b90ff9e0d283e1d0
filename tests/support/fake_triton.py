"""A scripted server of Triton's gRPC service, which answers rightly until a rule says otherwise, for any call.

It is for what a real Triton does not do on demand: fail, answer wrongly, be silent or die in a given phase. It needs no
torch, and shares memory as Triton does.
"""

from __future__ import annotations

import json
import mmap
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from tests.support.cards import card
from voxtile.triton.on_demand import ENTRY

ROI = (4, 5, 6)
TYPES = {"FP32": np.float32, "FP16": np.float16, "INT16": np.int16, "UINT8": np.uint8}

Network = Callable[[NDArray[Any]], NDArray[Any]]
Rule = Callable[[Any, Any, Callable[[], Any]], Any]
"""Called as rule(request, context, right) in place of a call; right() gives the right answer."""


class Seen(NamedTuple):
    """A call that has come in."""

    method: str
    headers: dict[str, Any]
    seconds_left: float | None
    request: Any


def identity_card(**changes: Any) -> dict[str, Any]:
    """The card of a model whose one score is the scan itself, in fp32; a tile has the shape `ROI`."""
    fields = {
        "orientation": None,
        "spacing": None,
        "intensity": {"rule": "none"},
        "roi_size": list(ROI),
        "input": {"dtype": "fp32", "padding": 0},
        "output": {"kind": "labels", "dtype": "fp32", "scores": 1},
        "tiling": {"semantics": "monai", "overlap": 0.0, "mode": "constant"},
    }
    return card(**{**fields, **changes})


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]  # untyped
    """One model behind Triton's gRPC service on a port of 127.0.0.1; a context manager.

    Attributes:
        card: the fields of the model's card; it is served under the card's name. May be changed at any time.
        network: tiles [batch, channel, *spatial] to scores.
        rules: by the name of a call, such as "ModelInfer", what happens in its place. May be changed at any time.
        calls: what has come in.
    """

    def __init__(
        self,
        network: Network = lambda tiles: tiles,
        *,
        credentials: Any = None,
        max_message_bytes: int = -1,
        threads: int = 32,
        **changes: Any,
    ) -> None:
        self.card = identity_card(**changes)
        self.network = network
        self.version = "1"
        self.rules: dict[str, Rule] = {}
        self.calls: list[Seen] = []
        self.stopping = threading.Event()
        self._credentials = credentials
        self._max_message_bytes = max_message_bytes
        self._threads = threads
        self._port = 0
        self._regions: dict[str, mmap.mmap] = {}

    def start(self) -> FakeTriton:
        """Starts it, again on the port that it had."""
        self.stopping.clear()
        self._pool = ThreadPoolExecutor(self._threads)
        limits = [(f"grpc.max_{way}_message_length", self._max_message_bytes) for way in ("receive", "send")]
        self._server = grpc.server(self._pool, interceptors=[_Script(self)], options=limits)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        address = f"127.0.0.1:{self._port}"
        add = self._server.add_insecure_port
        self._port = self._server.add_secure_port(address, self._credentials) if self._credentials else add(address)
        self._server.start()
        return self

    def die(self) -> None:
        """Ends it as a kill does: connections break, and shared memory is forgotten."""
        self.stopping.set()
        self._server.stop(None).wait()
        self._pool.shutdown()
        self._regions.clear()

    def __enter__(self) -> FakeTriton:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.die()

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self._port}"

    def count(self, method: str) -> int:
        """How often a call has come in; questions of whether the server loads models on demand are left out."""
        return sum(one.method == method and getattr(one.request, "model_name", "") != ENTRY for one in self.calls)

    # Triton's calls ------------------------------------------------------------------------------------------

    def ServerLive(self, request: Any, context: Any) -> Any:
        return service_pb2.ServerLiveResponse(live=True)

    def ServerMetadata(self, request: Any, context: Any) -> Any:
        return service_pb2.ServerMetadataResponse(name="triton", version="2.62.0")

    def RepositoryIndex(self, request: Any, context: Any) -> Any:
        entry = {"name": self.card["name"], "version": self.version, "state": "READY"}
        return service_pb2.RepositoryIndexResponse(models=[entry])

    def ModelMetadata(self, request: Any, context: Any) -> Any:
        self._check_name(request.name, context)
        return service_pb2.ModelMetadataResponse(name=request.name, versions=[self.version])

    def ModelConfig(self, request: Any, context: Any) -> Any:
        self._check_name(request.name, context)
        parameters = {"card": {"string_value": json.dumps(self.card)}}
        config = model_config_pb2.ModelConfig(name=request.name, max_batch_size=4, parameters=parameters)
        return service_pb2.ModelConfigResponse(config=config)

    def SystemSharedMemoryStatus(self, request: Any, context: Any) -> Any:
        regions = {name: {"name": name} for name in self._regions}
        return service_pb2.SystemSharedMemoryStatusResponse(regions=regions)

    def SystemSharedMemoryRegister(self, request: Any, context: Any) -> Any:
        with open(f"/dev/shm{request.key}", "r+b") as file:
            self._regions[request.name] = mmap.mmap(file.fileno(), request.byte_size)
        return service_pb2.SystemSharedMemoryRegisterResponse()

    def SystemSharedMemoryUnregister(self, request: Any, context: Any) -> Any:
        self._regions.pop(request.name, None)
        return service_pb2.SystemSharedMemoryUnregisterResponse()

    def ModelInfer(self, request: Any, context: Any) -> Any:
        self._check_name(request.model_name, context)
        raw = iter(request.raw_input_contents)
        tensors = [self._read(one, raw, context) for one in request.inputs]
        scores = np.ascontiguousarray(self.network(tensors[0]))
        response = service_pb2.ModelInferResponse(
            model_name=request.model_name, model_version=self.version, id=request.id
        )
        datatype = next(name for name, known in TYPES.items() if known == scores.dtype)
        response.outputs.add(name="scores", datatype=datatype, shape=scores.shape)
        place = request.outputs[0].parameters
        if "shared_memory_region" in place:
            self._array(place, scores.dtype, scores.shape, context)[...] = scores
        else:
            response.raw_output_contents.append(scores.tobytes())
        return response

    def _read(self, tensor: Any, raw: Any, context: Any) -> NDArray[Any]:
        dtype = np.dtype(TYPES[tensor.datatype])
        if "shared_memory_region" in tensor.parameters:
            return self._array(tensor.parameters, dtype, tuple(tensor.shape), context).copy()
        return np.frombuffer(next(raw), dtype).reshape(tensor.shape)

    def _array(self, place: Mapping[str, Any], dtype: np.dtype[Any], shape: tuple[int, ...], context: Any) -> Any:
        name = place["shared_memory_region"].string_param
        if name not in self._regions:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Unable to find shared memory region: '{name}'")
        offset = place["shared_memory_offset"].int64_param if "shared_memory_offset" in place else 0
        return np.ndarray(shape, dtype, self._regions[name], offset)

    def _check_name(self, name: str, context: Any) -> None:
        if name != self.card["name"]:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{name}' is not found")


class _Script(grpc.ServerInterceptor):  # type: ignore[misc]  # untyped
    """Writes down every call, and lets the server's rules answer it."""

    def __init__(self, fake: FakeTriton) -> None:
        self.fake = fake

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = continuation(details)
        method = details.method.rpartition("/")[2]
        if handler is None or not handler.unary_unary:
            return handler

        def answer(request: Any, context: Any) -> Any:
            headers = dict(context.invocation_metadata())
            self.fake.calls.append(Seen(method, headers, context.time_remaining(), request))
            right = lambda: handler.unary_unary(request, context)  # noqa: E731
            rule = self.fake.rules.get(method)
            return rule(request, context, right) if rule else right()

        return grpc.unary_unary_rpc_method_handler(answer, handler.request_deserializer, handler.response_serializer)


def fails(code: grpc.StatusCode, text: str = "out of order", *, first: float = float("inf")) -> Rule:
    """A rule that fails, for the `first` calls."""
    left = iter(range(10**9))

    def rule(request: Any, context: Any, right: Callable[[], Any]) -> Any:
        if next(left) < first:
            context.abort(code, text)
        return right()

    return rule


def changed(change: Callable[[Any], object]) -> Rule:
    """A rule that spoils each right answer in place."""

    def rule(request: Any, context: Any, right: Callable[[], Any]) -> Any:
        response = right()
        change(response)
        return response

    return rule


def silent(fake: FakeTriton) -> Rule:
    """A rule that answers nothing until the client or the server ends."""

    def rule(request: Any, context: Any, right: Callable[[], Any]) -> Any:
        ended = threading.Event()
        context.add_callback(ended.set)
        while not ended.wait(0.02) and not fake.stopping.is_set():
            pass
        return right()

    return rule
