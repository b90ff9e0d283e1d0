"""What the weights of a network say of its constructor's arguments, and how tensors are looked up. Knows no network."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

State = Mapping[str, Tensor]
AFFINE = ["instance", {"affine": True}]


@dataclass(frozen=True)
class Guess:
    """A network and arguments that may be those of some weights.

    Attributes:
        network: its name in a spec.
        args: arguments of the constructor that differ from the defaults, or that everyone gives.
        untold: arguments that weights of these names and shapes leave open; `args` or the default holds the usual one.
        divisors: what each axis of a tile must be a multiple of.
        roi_size: the only size of a tile that the network takes; empty where any multiple will do.
    """

    network: str
    args: dict[str, Any]
    untold: tuple[str, ...]
    divisors: tuple[int, ...]
    roi_size: tuple[int, ...] = field(default=())

    @property
    def channels(self) -> int:
        """The number of input channels."""
        return int(self.args["in_channels"])

    @property
    def classes(self) -> int:
        """The number of output channels."""
        return int(self.args["out_channels"])


def sizes(state: State, key: str) -> tuple[int, ...]:
    """The shape of a tensor; empty where there is none of this name."""
    return tuple(state[key].shape) if key in state else ()


def has(state: State, prefix: str) -> bool:
    """Whether any name begins with `prefix`."""
    return any(key.startswith(prefix) for key in state)


def count(state: State, pattern: str, first: int = 0) -> int:
    """How many of `pattern.format(first)`, `pattern.format(first + 1)`, … begin a name, until one does not."""
    return next(number for number in itertools.count() if not has(state, pattern.format(first + number)))


def plain(values: Sequence[int]) -> int | list[int]:
    """One number where all are equal, as people write kernels and strides."""
    return values[0] if len(set(values)) == 1 else list(values)


def norm_by_weights(state: State, place: str, affine: Any, plain_norm: Any) -> tuple[Any, bool]:
    """The normalisation at `place`, and whether the weights tell it.

    Batch normalisation is told by its running mean. A weight alone may be that of instance, group or layer
    normalisation, and no weight that of none at all.

    Args:
        state: the weights.
        place: the name of the layer, without the last dot.
        affine: what is usual with a weight.
        plain_norm: what is usual without.
    """
    if f"{place}.running_mean" in state:
        return "batch", True
    return (affine if f"{place}.weight" in state else plain_norm), False
