"""One Triton server: what it offers, and one request at a time sent to it without waiting.

Knows the wire (gRPC, shared memory, deadlines) and nothing of scans, tiling or retries.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.card import Card, parse_card
from voxtile.errors import InputError, ModelError, NoCardError, ServerUnavailable
from voxtile.half_floats import all_finite
from voxtile.triton.shared_memory import Region, forget_dead_clients

CHANNEL = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    (
        "grpc.max_reconnect_backoff_ms",
        1000,
    ),  # the default of two minutes would outlast any restart of a server
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.use_local_subchannel_pool", 1),
)
CONTROL_TIMEOUT_S = 10.0
"""For calls that carry no tiles: readiness, configuration, registration of memory."""

LETTING_GO_S = 2.0
"""How long closing waits for work that was cancelled; what the server still holds then, a later client clears up."""

DTYPES: Mapping[str, tuple[str, type[np.generic]]] = {
    "fp32": ("FP32", np.float32),
    "fp16": ("FP16", np.float16),
    "int16": ("INT16", np.int16),
    "uint8": ("UINT8", np.uint8),
}


@dataclass(frozen=True)
class ConnectionConfig:
    """How to reach servers. tls: None for plain text, else root, key and chain files (each may be None)."""

    tls: tuple[Path | None, Path | None, Path | None] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    shared_memory: bool | None = None
    compression: str | None = None
    deadline_s: float = 300.0


@dataclass(frozen=True)
class ServedModel:
    """A model as one server offers it."""

    card: Card
    version: str
    max_batch_size: int
    card_text: str


@dataclass(frozen=True)
class Request:
    """Some tiles: roi [batch, channel, *spatial] in the card's input type, and the scan's figures [channel, 2]."""

    index: int
    roi: NDArray[Any]
    statistics: NDArray[np.float32] | None

    @cached_property
    def inputs(self) -> list[tuple[str, NDArray[Any]]]:
        arrays: list[tuple[str, NDArray[Any]]] = [("roi", self.roi)]
        if self.statistics is not None:
            batch = np.broadcast_to(self.statistics, (len(self.roi), *self.statistics.shape))
            arrays.append(("intensity", np.ascontiguousarray(batch, np.float32)))
        return arrays

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for _, array in self.inputs)


class Call:
    """A request on its way; `cancel` stops waiting for it."""

    def __init__(self, request: Request, slot: Region | None) -> None:
        self.request = request
        self.slot = slot
        self.context: Any = None

    def cancel(self) -> None:
        if self.context is not None:
            self.context.cancel()


class Endpoint:
    """A server at `url` (host:port of its gRPC service)."""

    def __init__(self, url: str, connection: ConnectionConfig) -> None:
        self.url = url
        self.connection = connection
        self._slots: list[Region] = []
        self._distrusted: list[Region] = []
        self._shared: bool | None = connection.shared_memory
        self._client = _client(url, connection)

    # What it offers ------------------------------------------------------------------------------------------

    def check_live(self) -> None:
        """Raises ServerUnavailable where no server answers."""
        self._control("is_server_live")

    def models(self) -> list[tuple[str, str]]:
        """Name and state of every entry in the server's repository, with its newest version."""
        index = self._control("get_model_repository_index")
        return [(entry.name, entry.state) for entry in index.models]

    def model(self, name: str) -> ServedModel:
        """The model `name` with its card. Raises ModelError where there is none, ServerUnavailable where no answer."""
        from tritonclient.utils import InferenceServerException

        self.check_live()
        try:
            config = self._control("get_model_config", name).config
            version = self._control("get_model_metadata", name).versions[-1]
        except InferenceServerException as error:
            raise ModelError(
                f"model {name!r} is not offered by {self.url} ({error.message()}); it offers: {self._offer()}"
            ) from None
        if "card" not in config.parameters:
            raise NoCardError(
                f"{self.url} serves {name!r}, but its configuration carries no card; build it with voxtile-build, "
                "or ask for the public name"
            )
        text = config.parameters["card"].string_value
        return ServedModel(parse_card(text, name), str(version), max(config.max_batch_size, 1), text)

    def _offer(self) -> str:
        names = [name for name, state in self.models() if state == "READY"]
        return ", ".join(sorted(names)) or "nothing"

    def _control(self, call: str, *arguments: Any) -> Any:
        from tritonclient.utils import InferenceServerException

        try:
            return getattr(self._client, call)(
                *arguments, client_timeout=CONTROL_TIMEOUT_S, headers=dict(self.connection.headers)
            )
        except InferenceServerException as error:
            if any(state in (error.status() or "") for state in ("UNAVAILABLE", "DEADLINE", "UNIMPLEMENTED")):
                raise ServerUnavailable(
                    f"no Triton server answers gRPC at {self.url} ({(error.message() or '').strip()}); "
                    "start one (`make serve`) or give its address with --url HOST:PORT"
                ) from None
            raise

    # Tiles ---------------------------------------------------------------------------------------------------

    def send(self, model: ServedModel, request: Request, done: Callable[[Call, Any, Any], None]) -> Call:
        """Sends tiles; `done(call, result, error)` runs on a thread of gRPC once the answer is there."""
        call = Call(request, self._take_slot(model, request))
        inputs, outputs = self._tensors(model, request, call.slot)
        call.context = self._client.async_infer(
            model.card.name,
            inputs,
            callback=lambda result, error: done(call, result, error),
            outputs=outputs,
            client_timeout=self.connection.deadline_s,
            headers=dict(self.connection.headers),
            compression_algorithm=self.connection.compression,
        )
        return call

    def scores(self, model: ServedModel, call: Call, result: Any) -> NDArray[Any]:
        """The scores [batch, score, *spatial] of an answer, of the type and shape that the card promises.

        Raises ValueError for an answer of the wrong size or with values that are not finite.
        """
        card = model.card
        shape = _scores_shape(card, call.request)
        dtype = np.dtype(DTYPES[card.output.dtype][1])
        if call.slot is not None:
            answer = result.get_output("scores")
            if answer is None or tuple(answer.shape) != shape or answer.datatype != DTYPES[card.output.dtype][0]:
                raise ValueError(f"expected scores of shape {shape}, found {answer and tuple(answer.shape)}")
            scores = call.slot.array(dtype, shape, _output_offset(call.request)).copy()
        else:
            scores = result.as_numpy("scores")
            if scores is None or scores.shape != shape or scores.dtype != dtype:
                raise ValueError(f"expected scores {dtype}{shape}, found {scores is not None and scores.shape}")
        if dtype.kind == "f" and not _finite(scores):
            raise ValueError("the scores hold NaN or infinite values")
        return scores

    def release(self, call: Call, *, trusted: bool) -> None:
        """Takes back a call's memory. Not `trusted`: the server may still write to it, so it is never used again."""
        if call.slot is None:
            return
        if trusted:
            self._slots.append(call.slot)
        else:
            self._distrusted.append(
                call.slot
            )  # closed later: one by one, a server that is slow to answer would hold up all
        call.slot = None

    def forget_slots(self, *, shared: bool | None = None) -> None:
        """Drops all idle memory, as after a server's restart; `shared=False` goes over to plain gRPC."""
        self._distrusted += self._slots
        self._slots.clear()
        self._close_distrusted()
        if shared is not None:
            self._shared = shared

    def can_share_memory(self) -> bool:
        """Whether a region can really be shared: tries with a small one."""
        region = self._new_slot(4096) if _is_local(self.url) and self._try_sharing() else None
        if region is not None:
            self._distrusted.append(region)
        return region is not None

    @property
    def shares_memory(self) -> bool:
        return bool(self._shared)

    def close(self) -> None:
        """Gives back all memory and ends the connection; waits a little for the server to let go of cancelled work."""
        self.forget_slots()
        deadline = time.monotonic() + LETTING_GO_S
        while self._distrusted and time.monotonic() < deadline:
            time.sleep(0.02)
            self._close_distrusted()
        with contextlib.suppress(Exception):  # closing twice, or a channel that has failed, harms nobody
            self._client.close()

    def _close_distrusted(self) -> None:
        self._distrusted = [region for region in self._distrusted if not region.close()]

    def _take_slot(self, model: ServedModel, request: Request) -> Region | None:
        if self._shared is None:
            self._shared = _is_local(self.url) and self._try_sharing()
        if not self._shared:
            return None
        needed = _output_offset(request) + _scores_bytes(model.card, request)
        while self._slots:
            slot = self._slots.pop()
            if slot.size >= needed:
                return slot
            self._distrusted.append(slot)
        return self._new_slot(needed)

    def _new_slot(self, needed: int) -> Region | None:
        from tritonclient.utils import InferenceServerException

        self._close_distrusted()
        try:
            return Region(self._client, needed)
        except (OSError, InferenceServerException) as error:
            if self.connection.shared_memory:
                raise InputError(
                    f"--shared-memory was asked for, but {self.url} and this process cannot share memory ({error})"
                ) from None
            self._shared = False
            return None

    def _try_sharing(self) -> bool:
        from tritonclient.utils import InferenceServerException

        try:
            forget_dead_clients(self._client)
        except InferenceServerException:
            return False
        return True

    def _tensors(self, model: ServedModel, request: Request, slot: Region | None) -> tuple[list[Any], list[Any]]:
        from tritonclient.grpc import InferInput, InferRequestedOutput

        output = InferRequestedOutput("scores")
        inputs, offset = [], 0
        for name, array in request.inputs:
            tensor = InferInput(name, array.shape, DTYPES[_name_of(array.dtype)][0])
            if slot is None:
                tensor.set_data_from_numpy(array)
            else:
                slot.array(array.dtype, array.shape, offset)[...] = array
                tensor.set_shared_memory(slot.name, array.nbytes, offset)
                offset += array.nbytes
            inputs.append(tensor)
        if slot is not None:
            _mark_unwritten(slot, model.card, request)
            output.set_shared_memory(slot.name, _scores_bytes(model.card, request), _output_offset(request))
        return inputs, [output]


def _client(url: str, connection: ConnectionConfig) -> Any:
    from tritonclient.grpc import InferenceServerClient

    root, key, chain = connection.tls or (None, None, None)
    try:
        return InferenceServerClient(
            url,
            ssl=connection.tls is not None,
            root_certificates=root,
            private_key=key,
            certificate_chain=chain,
            channel_args=list(CHANNEL),
        )
    except OSError as error:
        raise InputError(f"a TLS file cannot be read: {error}") from None


def _output_offset(request: Request) -> int:
    """Scores begin on a boundary of 64 bytes behind the inputs."""
    return -(-request.nbytes // 64) * 64


def _finite(scores: NDArray[Any]) -> bool:
    """Whether no value is infinite or NaN; either would be left in the sum of all."""
    if scores.dtype == np.float16:
        return all_finite(scores)
    return math.isfinite(float(scores.sum(dtype=np.float32)))


def _scores_shape(card: Card, request: Request) -> tuple[int, ...]:
    """[batch, score, *spatial]: scores lie on the grid of the tiles that were sent."""
    return len(request.roi), card.output.scores, *request.roi.shape[2:]


def _scores_bytes(card: Card, request: Request) -> int:
    return math.prod(_scores_shape(card, request)) * np.dtype(DTYPES[card.output.dtype][1]).itemsize


def _mark_unwritten(slot: Region, card: Card, request: Request) -> None:
    """Puts NaN at both ends of every score volume: an answer that was announced but never written shows as such."""
    dtype = np.dtype(DTYPES[card.output.dtype][1])
    if dtype.kind == "f":
        batch, scores, *spatial = _scores_shape(card, request)
        volumes = (batch * scores, math.prod(spatial))
        slot.array(dtype, volumes, _output_offset(request))[:, [0, -1]] = np.nan


def _name_of(dtype: np.dtype[Any]) -> str:
    return next(name for name, (_, kind) in DTYPES.items() if np.dtype(kind) == dtype)


def _is_local(url: str) -> bool:
    host = url.rpartition(":")[0].strip("[]")
    return host in ("localhost", "::1") or host.startswith("127.")
