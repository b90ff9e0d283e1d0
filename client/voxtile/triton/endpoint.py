"""Talks to one Triton server: asks what it offers, and sends it one request at a time without waiting for the answer.

Knows nothing of scans, tiling or retries.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.card import parse_card
from voxtile.errors import (
    AccessError,
    ForkError,
    ModelError,
    NoCardError,
    NotLoadedError,
    ServerUnavailable,
    VoxtileError,
)
from voxtile.tensor_types import NUMPY_TYPES
from voxtile.triton import on_demand
from voxtile.triton.connection import ConnectionConfig, connect, control_headers
from voxtile.triton.faults import Fault, classify, lacks_model
from voxtile.triton.layout import (
    Mark,
    check_answer,
    check_finite,
    check_tensor,
    holds_mark,
    mark_unwritten,
    needed_bytes,
    scores_bytes,
    scores_offset,
)
from voxtile.triton.shared_memory import Region, ServerMemory
from voxtile.triton.slots import SlotPool
from voxtile.triton.types import Request, ServedModel, scores_shape, wire_type
from voxtile.triton.versions import offered, version_entry

CONTROL_TIMEOUT_S = 10.0
"""Seconds that a call without tiles may take: readiness, configuration, the list of models."""


UNLOADED = "UNLOADED"
"""The state of an entry that the server was asked to unload; Triton itself calls it unavailable, and says why."""


class Call:
    """A request in flight; `cancel` stops waiting for its answer.

    Attributes:
        number: tells it apart from every other request of its endpoint; the server repeats it in the answer.
        sent_at: when it was sent, by a clock of the sender's.
        model: what is to answer it; it is moved to another entry while a public name moves.
    """

    def __init__(self, request: Request, slot: Region | None, number: int, model: ServedModel) -> None:
        self.request = request
        self.model = model
        self.slot = slot
        self.mark: Mark | None = None
        self.number = number
        self.sent_at = 0.0
        self.context: Any = None

    def cancel(self) -> None:
        if self.context is not None:
            self.context.cancel()


class Endpoint:
    """A server.

    Args:
        url: HOST:PORT of its gRPC service.
        connection: how to reach it.

    Attributes:
        serves_model: whether it is known to serve the build of the model that its user wants. Set by the user, false at
            first, and read by all that send requests: a server that was lost may come back with another build.
        ruled_out: why it was ruled out last, so that it is told once; empty where it was not. Set by the user.

    Raises:
        InputError: the address is none, or a TLS file cannot be read.
    """

    def __init__(self, url: str, connection: ConnectionConfig) -> None:
        self.url = url
        self.connection = connection
        self._process = os.getpid()
        self._client = connect(url, connection)
        self._headers = functools.partial(control_headers, url, connection)
        self._slots = SlotPool(ServerMemory(self._client, self._headers), url, connection.shared_memory)
        self._numbers = itertools.count(1)
        self.serves_model = False
        self.ruled_out = ""

    # What it offers ------------------------------------------------------------------------------------------

    def check_live(self) -> None:
        """Raises ServerUnavailable where no server answers, or one that says it is not alive."""
        if not self._control("is_server_live"):
            raise ServerUnavailable(f"the server at {self.url} says that it is not alive; look at its log")

    def models(self) -> list[tuple[str, str]]:
        """Name and state of every entry in the server's repository.

        A server may keep the list of its repository from those who may not change it. It then tells the entries that
        are loaded, with the figures of their use, and nothing of those that could not be loaded.
        """
        try:
            index = self._control("get_model_repository_index")
        except AccessError as denied:
            return self._loaded(denied)
        return [(entry.name, UNLOADED if entry.reason == "unloaded" else entry.state) for entry in index.models]

    def _loaded(self, denied: AccessError) -> list[tuple[str, str]]:
        """The entries that are loaded, from the figures of their use; where those are not told, raises `denied`."""
        try:
            use = self._control("get_inference_statistics")
        except VoxtileError:
            raise denied from None
        return [(entry.name, "READY") for entry in use.model_stats]

    def model(self, name: str) -> ServedModel:
        """Reads the card of a model.

        Args:
            name: the model's public name, or the entry of one of its versions.

        Raises:
            ModelError: the server does not offer it, or its card cannot be used.
            NoCardError: its entry has no card.
            ServerUnavailable: no server answers, or it fails to.
            NotLoadedError: the server loads models on demand, and has begun to load this one; ask again.
            AccessError: the server refuses access.
        """
        _check_text(name)
        self.check_live()
        try:
            return self._model(name)
        except NoCardError:
            raise
        except ModelError:
            if not self._loads_on_demand(name):
                raise
        return self._model(name)

    def loaded_model(self, name: str) -> ServedModel:
        """As `versions.offered`, but waits for as long as a request may take where the server loads the model first."""
        return on_demand.once_loaded(lambda: offered(self, name), self.connection.deadline_s)

    def _model(self, name: str) -> ServedModel:
        config = self.config(name)
        text = self._card_text(name, config)
        versions = self._control("get_model_metadata", name).versions
        if not versions:
            raise ModelError(f"{self.url} serves no version of model {name!r}; look at its log")
        # A name may move between two answers: the version that the card came with counts.
        with_card = config.version_policy.specific.versions
        version = str(with_card[0] if len(with_card) == 1 else versions[-1])
        card = parse_card(text, name)
        is_version = name == version_entry(card.name, version)
        # Any other is asked for under the entry's name.
        number = int(version) if version.isdecimal() else card.version
        card = card.model_copy(update={"name": card.name if is_version else name, "version": number})
        return ServedModel(card, version, max(config.max_batch_size, 1), text, self.server_version(), name)

    def server_version(self) -> str:
        """The server's version; empty where it does not tell it, which stops nothing."""
        with contextlib.suppress(VoxtileError):
            return str(self._control("get_server_metadata").version)
        return ""

    def card_text(self, name: str) -> str:
        """The card of a model as the server has it now, or would load it. Raises as `model` does."""
        try:
            return self._card_text(name, self.config(name))
        except NoCardError:
            raise
        except ModelError:
            offer = self.on_demand().get(name)
            if offer is None:
                raise
            return offer.card

    def on_demand(self) -> dict[str, on_demand.Offer]:
        """The models that the server loads when they are asked for, by name; empty where it does not do so."""
        found = self._at_the_door(on_demand.offers)
        return {} if found is None else {offer.name: offer for offer in found}

    def _loads_on_demand(self, name: str) -> bool:
        """Asks for a model; false where the server does not load on demand.

        Raises:
            NotLoadedError: it loads the model now.
            ModelError: it cannot load it.
        """
        answer = self._at_the_door(functools.partial(on_demand.ask, name=name))
        if answer is None:
            return False
        if answer.state == "refused":
            raise ModelError(f"model {name!r} cannot be loaded by {self.url}: {answer.why}")
        if answer.state == "waiting":
            raise NotLoadedError(f"{self.url} has not loaded model {name!r} yet: {answer.why}")
        return True

    def _at_the_door(self, question: Callable[..., Any]) -> Any:
        """The answer of a server that loads on demand; None from one that does not."""
        from tritonclient.utils import InferenceServerException

        try:
            return question(self._client, headers=dict(self.connection.headers), client_timeout=CONTROL_TIMEOUT_S)
        except InferenceServerException as error:
            if lacks_model(error.status()):
                return None
            raise self._error(error.status(), (error.message() or "").strip()) from None
        except ValueError as error:
            raise ServerUnavailable(f"{self.url} answers wrongly when asked to load a model: {error}") from None

    def _card_text(self, name: str, config: Any) -> str:
        if "card" not in config.parameters:
            raise NoCardError(
                f"{self.url} serves {name!r}, but its configuration carries no card; build it with voxtile-build, "
                "or ask for the public name"
            )
        return str(config.parameters["card"].string_value)

    def config(self, name: str) -> Any:
        """The server's configuration of an entry, public or not."""
        return self._control("get_model_config", name).config

    def _ready_models(self) -> str:
        """The public entries that are ready; engines behind public names carry no card, and nobody asks for them."""
        try:
            names = sorted({name for name, state in self.models() if state == "READY"})
        except VoxtileError:
            return "what it does not tell"
        return ", ".join(self._public(names)) or "nothing"

    def _public(self, names: list[str]) -> list[str]:
        """Those of the entries that carry a card, and those of which the server does not tell it."""
        from tritonclient.utils import InferenceServerException

        public, headers = list[str](), self._headers()
        for number, name in enumerate(names):
            try:  # not by `_control`: its errors list the models in turn
                answer = self._client.get_model_config(name, client_timeout=CONTROL_TIMEOUT_S, headers=headers)
            except InferenceServerException as error:
                if not lacks_model(error.status()):
                    return public + names[number:]  # each further question could take as long as this one
                public.append(name)
                continue
            if "card" in answer.config.parameters:
                public.append(name)
        return public

    def _control(self, call: str, *arguments: Any) -> Any:
        from tritonclient.utils import InferenceServerException

        self.check_process()
        _check_text(*arguments)
        try:
            return getattr(self._client, call)(*arguments, client_timeout=CONTROL_TIMEOUT_S, headers=self._headers())
        except InferenceServerException as error:
            raise self._error(error.status(), (error.message() or "").strip(), *arguments) from None

    def _error(self, status: str | None, text: str, model: str | None = None) -> VoxtileError:
        """What a failed question, about `model` or about the server, means for the user."""
        fault = classify(status, text)
        if fault is Fault.DENIED:
            return AccessError(f"{self.url}: {fault.meaning} ({text or status}); {fault.advice}")
        if model is not None and lacks_model(status):
            return ModelError(
                f"model {model!r} is not offered by {self.url} ({text}); it offers: {self._ready_models()}"
            )
        if fault is Fault.BROKEN:
            return ServerUnavailable(f"the server at {self.url} fails to answer ({text or status}); {fault.advice}")
        return ServerUnavailable(
            f"no Triton server answers gRPC at {self.url} ({text or status}); start one (`make serve`), or give its "
            "address with --url HOST:PORT, and --tls where it encrypts"
        )

    # Tiles ---------------------------------------------------------------------------------------------------

    def send(self, model: ServedModel, request: Request, done: Callable[[Call, Any, Any], None]) -> Call:
        """Sends a request.

        Args:
            model: the model that is to answer.
            request: the tiles.
            done: called as done(call, result, error) on a thread of gRPC's when the answer has come.

        Returns:
            The request in flight. Its memory has to be given back with `release`.
        """
        from tritonclient.utils import InferenceServerException

        call = Call(request, self._slots.take(needed_bytes(model.card, request)), next(self._numbers), model)
        try:
            inputs, output = _tensors(model, call)
            call.context = self._client.async_infer(
                model.served_as,
                inputs,
                callback=lambda result, error: done(call, result, error),
                model_version=model.version,
                request_id=str(call.number),
                outputs=[output],
                client_timeout=self.connection.deadline_s,
                headers=dict(self.connection.headers),
                compression_algorithm=self.connection.compression,
            )
        except InferenceServerException as error:  # it could not even be sent
            done(call, None, error)
        except BaseException:
            self.release(call, trusted=False)
            raise
        return call

    def scores(self, model: ServedModel, call: Call, result: Any) -> NDArray[Any]:
        """Reads the scores of an answer.

        Returns:
            [batch, score, *spatial], of the type and shape that the card promises.

        Raises:
            ValueError: it is the answer to another request or of another version of the model, or has another size or
                type, or values that are not finite, or was not written.
        """
        card, slot = model.card, call.slot
        shape, dtype = scores_shape(card, call.request), np.dtype(NUMPY_TYPES[card.output.dtype])
        check_answer(result.get_response(), call.model.served_as, call.model.version, call.number)
        check_tensor(result.get_output(call.request.output), wire_type(dtype), shape)
        if slot is not None:
            scores = slot.array(dtype, shape, scores_offset(call.request)).copy()
            self._check_written(call, scores)
        else:
            scores = result.as_numpy(call.request.output)
        check_finite(scores)
        return scores

    def _check_written(self, call: Call, scores: NDArray[Any]) -> None:
        """Raises ValueError where the server has not written all scores to the memory: it may be another memory."""
        if call.slot is not None and call.mark is not None and holds_mark(scores, call.mark):
            self._slots.distrust(call.slot)
            call.slot = None
            raise ValueError("the server did not write its scores to the shared memory; try --no-shared-memory")

    def release(self, call: Call, *, trusted: bool) -> None:
        """Takes back a call's memory.

        Args:
            call: a request that has been answered, has failed or is no longer waited for.
            trusted: whether the server has finished with the memory. If not, it is never used again.
        """
        slot, call.slot = call.slot, None
        if slot is None:
            return
        if trusted:
            self._slots.give_back(slot)
        else:
            self._slots.drop(slot)

    def forget_slots(self) -> None:
        """Drops all idle memory, as after a server's restart."""
        self._slots.forget()

    def tidy_slots(self, keep: int) -> None:
        """Drops all idle memory but `keep` pieces, and closes what was dropped."""
        self._slots.tidy(keep)

    def can_share_memory(self) -> bool:
        """Tries whether memory can be shared with the server."""
        return self._slots.can_share()

    def check_process(self) -> None:
        """Raises ForkError in a process that was forked from the one that made this connection."""
        if os.getpid() != self._process:
            raise ForkError(
                f"the connection to {self.url} was made by process {self._process}, and a fork cannot share it; make "
                "a Segmenter or RemoteNetwork in each process, or start the processes with multiprocessing's spawn"
            )

    def close(self) -> None:
        """Gives back all memory and ends the connection; in a forked process, leaves both to the parent."""
        if os.getpid() != self._process:
            self._slots.abandon()
            return
        self._slots.close()
        with contextlib.suppress(Exception):  # closing twice, or a channel that has failed, does no harm
            self._client.close()


def _check_text(*names: Any) -> None:
    """Raises ModelError for a model's name that no server can have, such as one with bytes that are no UTF-8."""
    for name in names:
        if not isinstance(name, str) or not name.isprintable():
            raise ModelError(f"expected the name of a model, found {name!r}; `voxtile models` lists those offered")


def _tensors(model: ServedModel, call: Call) -> tuple[list[Any], Any]:
    """Triton's descriptions of the inputs and of the output; with a slot, the inputs are written to it."""
    from tritonclient.grpc import InferInput, InferRequestedOutput

    request, slot = call.request, call.slot
    output = InferRequestedOutput(request.output)
    inputs, offset = [], 0
    for name, array in request.inputs:
        tensor = InferInput(name, array.shape, wire_type(array.dtype))
        if slot is None:
            tensor.set_data_from_numpy(array)
        else:
            slot.array(array.dtype, array.shape, offset)[...] = array
            tensor.set_shared_memory(slot.name, array.nbytes, offset)
            offset += array.nbytes
        inputs.append(tensor)
    if slot is not None:
        shape, offset = scores_shape(model.card, request), scores_offset(request)
        call.mark = mark_unwritten(slot.array(np.dtype(NUMPY_TYPES[model.card.output.dtype]), shape, offset))
        output.set_shared_memory(slot.name, scores_bytes(model.card, request), offset)
    return inputs, output
