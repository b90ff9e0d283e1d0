"""Runs an entry of a running server, called as an engine is called; over the client's own connection."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from queue import SimpleQueue
from typing import Any

from tritonclient.grpc import model_config_pb2 as pb

from voxtile.card import Card
from voxtile.errors import AccessError, InputError, ModelError, NoCardError, ServerUnavailable, VoxtileError
from voxtile.triton.connection import ConnectionConfig
from voxtile.triton.endpoint import Endpoint
from voxtile.triton.types import Request, ServedModel
from voxtile_build.arrays import Array, Feed
from voxtile_build.certificate.device import device_name
from voxtile_build.errors import RepositoryError, VerificationError

CONNECTION = ConnectionConfig(shared_memory=False, deadline_s=600.0)
"""An engine without warm-up may compile at its first request, which takes minutes."""


@dataclass(frozen=True)
class _Tensors(Request):
    """A request of any named tensors, batch first; `roi` is the first of them. answer: the name of the scores."""

    tensors: Mapping[str, Array] = field(default_factory=dict)
    answer: str = "scores"

    @property
    def output(self) -> str:
        return self.answer

    @cached_property
    def inputs(self) -> list[tuple[str, Array]]:
        return list(self.tensors.items())


class ServedRunner:
    """Runs one entry.

    Args:
        url: HOST:PORT of the server's gRPC service.
        card: of the public model that the entry belongs to; says of which type scores are.
        entry: the entry's name.
        tensor_name: what the entry calls `roi`, `intensity` and `scores`; without it, so.
        connection: how to reach the server.

    Raises:
        VerificationError: no server answers, or the server does not offer the entry.
    """

    def __init__(
        self,
        url: str,
        card: Card,
        entry: str,
        tensor_name: Callable[[str], str] = str,
        connection: ConnectionConfig = CONNECTION,
    ) -> None:
        self._entry, self._tensor_name = entry, tensor_name
        self._model = ServedModel(card.model_copy(update={"name": entry}), "", 1, "")
        self._connection = connection
        self._endpoint = Endpoint(url, connection)
        try:
            self._check_offered()
        except VerificationError:
            self._endpoint.close()
            raise

    def __enter__(self) -> ServedRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self._endpoint.close()

    def __call__(self, inputs: Feed) -> Array:
        """`scores` [batch, score, *spatial] of named inputs.

        Raises:
            VerificationError: with what the server says, or what is wrong with its answer.
        """
        answers: SimpleQueue[tuple[Any, Any]] = SimpleQueue()
        tensors = {self._tensor_name(name): array for name, array in inputs.items()}
        request = _Tensors(0, next(iter(inputs.values())), None, tensors, self._tensor_name("scores"))
        call = self._endpoint.send(self._model, request, lambda _, result, error: answers.put((result, error)))
        result, error = answers.get()
        if error is not None:
            raise self._failed(error.message() if hasattr(error, "message") else str(error))
        try:
            return self._endpoint.scores(self._model, call, result)
        except ValueError as problem:
            raise self._failed(str(problem)) from None

    @property
    def device_kind(self) -> str:
        """The kind of device that the server runs the entry on: `cpu` or `gpu`."""
        try:
            groups = self._endpoint.config(self._entry).instance_group
        except VoxtileError as error:
            raise self._failed(str(error)) from None
        return "gpu" if any(group.kind == pb.ModelInstanceGroup.KIND_GPU for group in groups) else "cpu"

    @property
    def device(self) -> str:
        """The name of that device; a server on another machine does not tell it, so its address stands for it."""
        here = False
        with (
            contextlib.closing(Endpoint(self._endpoint.url, replace(self._connection, shared_memory=None))) as endpoint,
            contextlib.suppress(VoxtileError),
        ):
            here = endpoint.can_share_memory()
        return device_name(self.device_kind) if here else f"{self.device_kind} of {self._endpoint.url}"

    def _failed(self, reason: str) -> VerificationError:
        return VerificationError(f"{self._endpoint.url}: {self._entry} fails: {reason}")

    def _check_offered(self) -> None:
        try:
            self._endpoint.model(self._entry)
        except NoCardError:
            return  # an entry behind a public name
        except (ServerUnavailable, AccessError) as error:
            raise _no_answer(self._endpoint.url, error) from None
        except ModelError:
            raise VerificationError(
                f"{self._endpoint.url}: the server does not offer {self._entry}; serve the repository that is verified"
            ) from None


def require_server(url: str, connection: ConnectionConfig = CONNECTION) -> None:
    """Check that a server answers.

    Raises:
        VerificationError: none answers at `url`, HOST:PORT of its gRPC service, or it cannot be reached so.
        RepositoryError: no server can have this address, or a file of the connection cannot be read.
    """
    try:
        with contextlib.closing(Endpoint(url, connection)) as endpoint:
            endpoint.check_live()
    except InputError as error:
        raise RepositoryError(f"{url}: {error}") from None
    except VoxtileError as error:
        raise _no_answer(url, error) from None


def _no_answer(url: str, error: Exception) -> VerificationError:
    return VerificationError(f"{url}: no Triton answers there ({error}); give HOST:PORT of its gRPC service")
