"""Defines a transport: whatever turns tiles into scores.

The pipeline and `RemoteNetwork` know only this protocol. `GrpcTransport` implements it for Triton servers; a test or a
backend inside Triton may hand in another one. This module knows nothing of gRPC.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from voxtile.triton.types import Request, ServedModel, Traffic

DEFAULT_IN_FLIGHT = 8
"""Requests in flight to one server, unless the caller chooses otherwise."""


class Answers(Protocol):
    """The scores of requests, in the order of the requests. A generator is one."""

    def __iter__(self) -> Iterator[NDArray[Any]]: ...

    def __next__(self) -> NDArray[Any]: ...

    def close(self) -> None:
        """Stops the work: no further request is made, and those in flight are cancelled.

        Another thread may call it while one waits for the next answer. It then raises ValueError where the wait cannot
        be ended (a generator that is running); the caller stops after that answer.
        """
        ...


class Transport(Protocol):
    """Runs tiles through one model, on one or several servers."""

    @property
    def model(self) -> ServedModel:
        """The model that answers."""
        ...

    @property
    def servers(self) -> Sequence[str]:
        """The names of the servers, for the report; their number is the number that may compute at once."""
        ...

    def infer(
        self, requests: Iterator[Request], in_flight: int = DEFAULT_IN_FLIGHT, traffic: Traffic | None = None
    ) -> Answers:
        """Sends requests and returns their scores. Several threads may call it at once.

        Args:
            requests: the requests, with indices 0, 1, 2, ….  They are made only as they are needed, possibly on another
                thread.
            in_flight: the most requests in flight to one server.
            traffic: counters that are increased on the way.

        Returns:
            For each request in turn its scores [batch, score, *spatial], in the card's output type.

        Raises:
            All that follow are raised by the returned iterator, the last but one also at its end; scores are to be
            trusted once it has ended.
            TileError: a request failed at every server.
            NoResponseError: no server has answered for too long.
            OtherBuildError: the model was replaced by another build of it meanwhile.
            AccessError: every server refuses access.
        """
        ...

    def close(self) -> None:
        """Ends all connections."""
        ...
