"""Networks whose tensors have shapes and no values, and what can be read from these. Knows no weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from voxtile_build.networks import find_network, make_network

CHANNELS, CLASSES = 1, 2
"""For a network whose arguments say nothing of them."""
OWN_STUDENT = "choose a smaller network yourself: voxtile-build distil --student STUDENT.toml starts it at random"
"""What is left to do where channels cannot be cut."""


def skeleton(name: str, args: Mapping[str, Any], channels: int = CHANNELS, classes: int = CLASSES) -> nn.Module:
    """The network on PyTorch's device `meta`, with the outputs of deep supervision where it has the weights for them.

    Args:
        name: of the network.
        args: of its constructor.
        channels: of the input, where the arguments do not say it.
        classes: of the output, where the arguments do not say it.

    Raises:
        NetworkError: the constructor refuses the arguments.
    """
    spec = find_network(name)
    channels = args.get(spec.in_channels, channels) if spec.in_channels else channels
    classes = args.get(spec.out_channels, classes) if spec.out_channels else classes
    with torch.device("meta"):
        network = make_network(name, args, channels, classes)
    if spec.blocks:  # nnU-Net's networks have these weights, and leave them unused
        network.get_submodule("decoder").deep_supervision = True  # type: ignore[assignment]
    return network


def shapes(network: nn.Module) -> dict[str, torch.Size]:
    """The shape of every tensor of a network, by the names of its state dict."""
    return {name: tensor.shape for name, tensor in network.state_dict().items()}


def first_names(network: nn.Module) -> dict[str, str]:
    """Every name of the state dict, with the first name of the same tensor: DynUNet has its layers under two names."""
    named = [*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False)]
    firsts: dict[int, str] = {}
    for name, tensor in named:
        firsts.setdefault(id(tensor), name)
    of = {name: firsts[id(tensor)] for name, tensor in named}
    return {name: of[name] for name in network.state_dict()}
