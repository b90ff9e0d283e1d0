"""A transport without a server: any function in place of the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from numpy.typing import NDArray

from voxtile.card import Card
from voxtile.triton.types import Request, ServedModel, Traffic


class InMemoryTransport:
    """Answers requests on the caller's thread.

    Args:
        card: The model's card.
        network: Takes tiles [batch, channel, *spatial], gives scores [batch, score, *spatial] in the card's type.
        max_batch_size: The most tiles in one request.
        servers: The names of the servers that it stands for.
    """

    def __init__(
        self,
        card: Card,
        network: Callable[[NDArray[Any]], NDArray[Any]],
        max_batch_size: int = 4,
        servers: Sequence[str] = ("memory",),
    ) -> None:
        self.model = ServedModel(card, "1", max_batch_size, card.model_dump_json())
        self.servers = servers
        self.network = network
        self.closed = False

    def infer(
        self, requests: Iterator[Request], in_flight: int = 8, traffic: Traffic | None = None
    ) -> Iterator[NDArray[Any]]:
        traffic = Traffic() if traffic is None else traffic
        for request in requests:
            scores = self.network(request.roi)
            traffic.requests += 1
            traffic.bytes_sent += request.nbytes
            traffic.bytes_received += scores.nbytes
            yield scores

    def has_moved(self) -> bool:
        return False  # its model is the network, and nothing else can take the name

    def close(self) -> None:
        self.closed = True
