"""Chooses the output that holds the scores, where a network has several (deep supervision, UNet++)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from voxtile_build.errors import NetworkError


class OneHead(nn.Module):
    """A network of several outputs, reduced to the output numbered `head`; -1 is the last."""

    def __init__(self, network: nn.Module, head: int) -> None:
        super().__init__()
        self.network, self.head = network, head

    def forward(self, image: Tensor) -> Tensor:
        return choose(self.network(image), self.head)


def choose(outputs: Any, head: int | None) -> Tensor:
    """The output numbered `head`; without a number, the only output.

    Raises:
        NetworkError: there is no such output, or it is not a tensor.
    """
    if isinstance(outputs, Mapping):
        raise NetworkError(
            f"network: expected one tensor or a list of tensors, found a mapping of {', '.join(map(str, outputs))}; "
            "save the network behind a module that gives the wanted tensor"
        )
    heads = list(outputs) if isinstance(outputs, Sequence) else [outputs]
    index = choose_index(len(heads), head)
    chosen = heads[index]
    if not isinstance(chosen, Tensor):
        raise NetworkError(f"network: expected output {index} to be a tensor, found {type(chosen).__name__}")
    return chosen


def choose_index(count: int, head: int | None) -> int:
    """The index of the output that `head` means.

    Args:
        count: the number of outputs.
        head: network.head of the spec.

    Raises:
        NetworkError: there is no such output, or there are several and `head` is missing.
    """
    if head is None:
        if count != 1:
            raise NetworkError(
                f"network.head: missing; the network gives {count} outputs, of which head = 0 … {count - 1} "
                "(-1: the last) must choose one, unless deep supervision is switched off in network.args"
            )
        return 0
    if not -count <= head < count:
        raise NetworkError(
            f"network.head: expected one of the network's {count} outputs, 0 … {count - 1}, found {head}"
        )
    return head % count
