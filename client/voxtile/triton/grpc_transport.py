"""Implements the transport for Triton servers: several servers that offer one model are used as one.

Knows nothing of scans or stitching.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from numpy.typing import NDArray

from voxtile.errors import AccessError, InputError, ModelError, NotLoadedError, ServerUnavailable, VoxtileError
from voxtile.triton.connection import ConnectionConfig
from voxtile.triton.endpoint import Endpoint
from voxtile.triton.on_demand import once_loaded
from voxtile.triton.pump import Pump
from voxtile.triton.retry import RetryPolicy
from voxtile.triton.transport import DEFAULT_IN_FLIGHT
from voxtile.triton.types import Request, ServedModel, Traffic
from voxtile.triton.versions import offered, same_build, split_version

log = logging.getLogger(__name__)


class GrpcTransport:
    """The servers that offer `model`, as one `Transport`.

    Args:
        endpoints: the servers; closed with the transport.
        model: the model's public name, or NAME@VERSION.
        retry_policy: retry limits.

    Raises:
        ServerUnavailable: no server answers.
        AccessError: no server that answers gives access.
        ModelError: a server that answers lacks the model, or the servers have different builds of it (a mask must not
            be stitched from two networks).
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        model: str,
        retry_policy: RetryPolicy = RetryPolicy(),  # noqa: B008 - frozen
    ) -> None:
        self._endpoints = endpoints
        self._retry_policy = retry_policy
        self._closed = False
        try:
            limit_s = min(endpoint.connection.deadline_s for endpoint in endpoints)
            self.model = once_loaded(lambda: _agreed_model(endpoints, model), limit_s)
            self._asked = self.model.served_as if split_version(model)[1] else model
        except BaseException:
            self.close()
            raise

    @property
    def servers(self) -> Sequence[str]:
        """The servers' addresses."""
        return [endpoint.url for endpoint in self._endpoints]

    def infer(
        self, requests: Iterator[Request], in_flight: int = DEFAULT_IN_FLIGHT, traffic: Traffic | None = None
    ) -> GrpcAnswers:
        """Sends requests and returns their scores; see `Transport.infer`.

        Raises:
            ForkError: this process was forked from the one that made the transport.
            InputError: the transport has been closed.
        """
        if self._closed:
            raise InputError(f"the connection to {', '.join(self.servers)} has been closed; make a new one")
        for endpoint in self._endpoints:
            endpoint.check_process()
        traffic = Traffic() if traffic is None else traffic
        return GrpcAnswers(Pump(self._endpoints, self.model, requests, self._retry_policy, in_flight, traffic))

    def has_moved(self) -> bool:
        """Whether a server that answers has another build now under the name that was asked for."""
        for endpoint in self._endpoints:
            with contextlib.suppress(VoxtileError):
                if endpoint.card_text(self._asked) != self.model.card_text:
                    return True
        return False

    def close(self) -> None:
        """Ends all connections and gives back all shared memory."""
        self._closed = True
        with contextlib.ExitStack() as stack:
            for endpoint in self._endpoints:
                stack.callback(endpoint.close)

    def __enter__(self) -> GrpcTransport:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class GrpcAnswers:
    """The scores that a pump hands over. The pump has ended when the last one is taken, or when an error is raised."""

    def __init__(self, pump: Pump) -> None:
        self._pump = pump
        self._closed = False
        pump.start()

    def __iter__(self) -> GrpcAnswers:
        return self

    def __next__(self) -> NDArray[Any]:
        scores = None
        try:
            scores = None if self._closed else self._pump.take()
        finally:
            if scores is None:
                self.close()
        if scores is None:
            raise StopIteration
        return scores

    def close(self) -> None:
        """Ends the pump; another thread that waits for the next scores gets none."""
        self._closed = True
        self._pump.stop()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # at the interpreter's end what it needs may be gone
            self.close()


def connect_transport(
    url: str | Sequence[str] | None,
    model: str | None,
    connection: ConnectionConfig = ConnectionConfig(),  # noqa: B008 - frozen
    retry_policy: RetryPolicy = RetryPolicy(),  # noqa: B008 - frozen
) -> GrpcTransport:
    """Connects to the servers that offer a model.

    Args:
        url: HOST:PORT of a server's gRPC service, or several of them.
        model: the model's public name, or NAME@VERSION.
        connection: how to reach the servers.
        retry_policy: retry limits.

    Raises:
        InputError: no server or no model is named, an address is none, or a TLS file cannot be read.
        ServerUnavailable: no server answers.
        AccessError: no server that answers gives access.
        ModelError: a server that answers lacks the model, or the servers have different builds of it.
    """
    urls = [url] if isinstance(url, str) else list(url or ())
    if not urls or model is None:
        missing = "no model's name" if urls else "no address"
        raise InputError(
            f"expected the address of a server (HOST:PORT of its gRPC service) and a model's name, found {missing}"
        )
    with contextlib.ExitStack() as opened:
        endpoints = [opened.enter_context(contextlib.closing(Endpoint(one, connection))) for one in urls]
        transport = GrpcTransport(endpoints, model, retry_policy)
        opened.pop_all()  # the transport closes them now
        return transport


def _offered(endpoint: Endpoint, name: str, before: Sequence[ServedModel]) -> ServedModel:
    """The model as a server offers it; of a name that is just being moved, the build that the others have offered."""
    found = offered(endpoint, name)
    if before and found.card_text != before[0].card_text:
        return same_build(endpoint, before[0]) or found
    return found


def _agreed_model(endpoints: Sequence[Endpoint], name: str) -> ServedModel:
    """The model as all servers offer it, with the smallest batch that any of them takes."""
    offers: list[ServedModel] = []
    missing: list[ServerUnavailable] = []
    for endpoint in endpoints:
        try:
            offers.append(_offered(endpoint, name, offers))
            endpoint.serves_model = True
        except ServerUnavailable as error:
            missing.append(error)
    if not offers:
        first = (kind for cause in (NotLoadedError, AccessError) for kind in missing if isinstance(kind, cause))
        raise next(first, missing[0])
    for silent in missing:
        log.warning("%s; going on without it", silent)
    if any(offer.card_text != offers[0].card_text for offer in offers):
        raise ModelError(
            f"the servers {', '.join(endpoint.url for endpoint in endpoints)} serve different builds of {name!r}; "
            "give every server the same repository"
        )
    return min(offers, key=lambda offer: offer.max_batch_size)
