"""Defines what is exchanged with a model: requests of tiles, the model as it is served, tensor types, traffic.

Knows nothing of gRPC, of addresses or of scans.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.card import Card
from voxtile.tensor_types import NUMPY_TYPES


def wire_type(dtype: np.dtype[Any]) -> str:
    """Triton's name of a type that a card can name, such as FP32."""
    return next(name for name, known in NUMPY_TYPES.items() if known == dtype).upper()


@dataclass(frozen=True)
class ServedModel:
    """A model as it is served.

    Attributes:
        card: its card.
        version: the version that answers.
        max_batch_size: the most tiles that one request may hold, at least 1.
        card_text: the card as the server stores it; equal texts mean the same build.
        server: the version of Triton that serves it, such as "2.62.0"; empty where it does not tell it.
        entry: the entry that answers, where that is not the one with the card's name.
    """

    card: Card
    version: str
    max_batch_size: int
    card_text: str
    server: str = ""
    entry: str = ""

    @property
    def served_as(self) -> str:
        """The entry of the server's repository that answers."""
        return self.entry or self.card.name


@dataclass(frozen=True)
class Request:
    """A batch of tiles.

    Attributes:
        index: the position among the requests of one `infer`, from 0 on; answers come back in this order.
        roi: [batch, channel, *spatial] in the card's input type.
        statistics: [channel, 2] float32, what the model subtracts and divides by; None where it takes neither.
    """

    index: int
    roi: NDArray[Any]
    statistics: NDArray[np.float32] | None

    @cached_property
    def inputs(self) -> list[tuple[str, NDArray[Any]]]:
        """The input tensors with their names, in the order in which they are sent."""
        arrays: list[tuple[str, NDArray[Any]]] = [("roi", self.roi)]
        if self.statistics is not None:
            batch = np.broadcast_to(self.statistics, (len(self.roi), *self.statistics.shape))
            arrays.append(("intensity", np.ascontiguousarray(batch, np.float32)))
        return arrays

    @property
    def output(self) -> str:
        """The name of the output tensor with the scores."""
        return "scores"

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for _, array in self.inputs)


def scores_shape(card: Card, request: Request) -> tuple[int, ...]:
    """[batch, score, *spatial]: scores lie on the grid of the tiles that were sent."""
    return len(request.roi), card.output.scores, *request.roi.shape[2:]


@dataclass
class Traffic:
    """What one `infer` has sent and received so far.

    Attributes:
        bytes_sent: bytes of the input tensors; a request that is sent again counts again.
        bytes_received: bytes of the scores.
        requests: requests sent, those that were sent again included.
        retries: requests that were sent again.
        peak_in_flight: the most requests that were in flight at once, over all servers.
        shared_memory: whether any request went through shared memory.
    """

    bytes_sent: int = 0
    bytes_received: int = 0
    requests: int = 0
    retries: int = 0
    peak_in_flight: int = 0
    shared_memory: bool = False
