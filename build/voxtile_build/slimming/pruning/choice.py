"""Chooses the channels of each group that are worth keeping: those with the largest L2 norm of all weights they touch.

Knows no kind of network.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from voxtile_build.slimming.pruning.channels import Axis, Channels


def kept_channels(channels: Channels, state: Mapping[str, Tensor], counts: Mapping[int, int]) -> dict[int, Tensor]:
    """The channels of each group that stay, in their order.

    Args:
        channels: of the network.
        state: its weights.
        counts: how many stay, by group.

    Returns:
        By group, ascending indices, int64 on the CPU. Of two channels of equal worth, the first one stays.
    """
    worth = worth_of(channels, state)
    return {
        group: _largest(worth[group], count, channels.parts.get(group, 1) if count < channels.sizes[group] else 1)
        for group, count in counts.items()
    }


def worth_of(channels: Channels, state: Mapping[str, Tensor]) -> dict[int, Tensor]:
    """By group, the squared L2 norm of all weights that each channel touches.

    These are the convolutions that make it, those that read it, and the scales of its norms. Biases do not count: what
    they add, the next norm takes away again.

    Args:
        channels: of the network.
        state: its weights.

    Returns:
        By group, float64 [channel] on the CPU.
    """
    worth = {group: torch.zeros(size, dtype=torch.float64) for group, size in channels.sizes.items()}
    for axis in channels.axes:
        if axis.weighs:
            for group, part in _along(axis, channels, state[axis.tensor]):
                worth[group] += part
    return worth


def _along(axis: Axis, channels: Channels, tensor: Tensor) -> list[tuple[int, Tensor]]:
    """The groups along an axis, each with the sum of squares of each of its channels."""
    squares = tensor.detach().cpu().double().square().movedim(axis.axis, 0)
    sums = squares.reshape(len(squares), -1).sum(1)
    split = torch.split(sums, [channels.sizes[group] for group in axis.groups])
    return list(zip(axis.groups, split, strict=True))


def _largest(worth: Tensor, count: int, parts: int) -> Tensor:
    """Ascending indices of the largest values, as many from each of the equal parts.

    A group norm's parts stay together so: a channel is normalised with those that it was normalised with.
    """
    rows = worth.reshape(parts, -1)
    order = rows.argsort(dim=1, descending=True, stable=True)[:, : count // parts]
    first = torch.arange(parts).unsqueeze(1) * rows.shape[1]
    return (order + first).flatten().sort().values
