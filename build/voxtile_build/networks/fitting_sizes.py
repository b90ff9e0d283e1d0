"""Finds sizes that a network takes, by its shapes alone: nothing is computed. Knows no spec."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

STEPS = (2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 48, 64, 96, 128)
"""Steps that are tried, the smallest first: products of the strides that people choose."""


def without_values(network: nn.Module) -> nn.Module:
    """A copy of `network` whose tensors have shapes and no values: it runs on PyTorch's device `meta`."""
    return copy.deepcopy(network).to("meta")


def fitting_step(network: nn.Module, channels: int, sizes: Sequence[int]) -> int | None:
    """The smallest step whose multiples the network takes along every axis; None where none is found.

    Args:
        network: image [batch, channel, *spatial] -> scores [batch, label, *spatial].
        channels: of the image.
        sizes: voxels along each axis that the network refuses; multiples at and above them are tried.
    """
    try:
        empty = without_values(network)
    except Exception:  # programs of torch.export, what is no module, and modules that cannot be copied
        return None
    for step in STEPS:
        first = rounded_up(sizes, step)
        if all(_takes(empty, channels, tuple(size + more for size in first)) for more in (0, step)):
            return step
    return None


def rounded_up(sizes: Sequence[int], step: int) -> tuple[int, ...]:
    """The next multiples of `step`."""
    return tuple(-(-size // step) * step for size in sizes)


def shape_of_scores(network: nn.Module, channels: int, sizes: Sequence[int]) -> tuple[int, ...] | None:
    """The shape of what a network of `without_values` gives for an image of `sizes`; None where it refuses
    them, or gives several outputs.

    Args:
        network: from `without_values`.
        channels: of the image.
        sizes: voxels along each axis.
    """
    try:
        with torch.inference_mode():
            scores = network(torch.empty(1, channels, *sizes, device="meta"))
    except Exception:  # networks raise many kinds of errors
        return None
    alone = scores[0] if isinstance(scores, list | tuple) and len(scores) == 1 else scores
    return tuple(alone.shape) if isinstance(alone, Tensor) else None


def _takes(network: nn.Module, channels: int, sizes: tuple[int, ...]) -> bool:
    return (shape_of_scores(network, channels, sizes) or ())[2:] == sizes
