"""Cuts the weights of a network down to those of a narrower one of the same class. Knows no specs and no files."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from voxtile_build.errors import SlimmingError
from voxtile_build.networks import find_network
from voxtile_build.slimming.arguments import arguments_of
from voxtile_build.slimming.pruning.choice import kept_channels
from voxtile_build.slimming.pruning.cut import cut_between
from voxtile_build.slimming.skeleton import CHANNELS, CLASSES, first_names, shapes


def prune(network: nn.Module, name: str, args: Mapping[str, Any], student_args: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of a narrower network: in each group, the channels with the largest L2 norm stay.

    Args:
        network: with its weights.
        name: of the network.
        args: of its constructor.
        student_args: of the narrower network's constructor, such as those of `widths.narrower`.

    Returns:
        A state dict that loads strictly into the narrower network. The tensors are copies on the network's device; one
        that the network has under several names is one here too.

    Raises:
        SlimmingError: the one cannot be cut down to the other, or `network` is not the one of `args`.
        NetworkError: a constructor refuses its arguments.
    """
    arguments_of(name)
    cut = cut_between(name, args, student_args, *_counts(network, name))
    if shapes(network) != cut.before:
        raise SlimmingError(f"{name}: expected the network of these arguments, found one with other weights")
    names = first_names(network)
    state = {key: tensor.detach().clone() for key, tensor in network.state_dict().items() if names[key] == key}
    kept = kept_channels(cut.channels, state, cut.counts)
    for axis in cut.channels.axes:
        starts = itertools.accumulate((cut.channels.sizes[group] for group in axis.groups), initial=0)
        along = [kept[group] + start for group, start in zip(axis.groups, starts, strict=False)]
        state[axis.tensor] = _chosen(state[axis.tensor], axis.axis, along)
    return {key: state[first] for key, first in names.items()}


def _chosen(tensor: Tensor, axis: int, along: list[Tensor]) -> Tensor:
    return tensor.index_select(axis, torch.cat(along).to(tensor.device))


def _counts(network: nn.Module, name: str) -> tuple[int, int]:
    """Input channels and classes of a network, which the arguments of nnU-Net's do not say."""
    if not find_network(name).blocks:
        return CHANNELS, CLASSES
    first = next((layer.in_channels for layer in network.modules() if isinstance(layer, _ConvNd)), CHANNELS)
    return first, getattr(getattr(network, "decoder", None), "num_classes", CLASSES)
