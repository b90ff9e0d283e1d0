"""The two demo networks, exactly as they are trained and served, and their files of weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from monai.networks.nets import SwinUNETR, UNet
from safetensors.torch import load_file, save
from torch import Tensor, nn

ARGUMENTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "brain-swinunetr": {"in_channels": 1, "out_channels": 3, "feature_size": 12, "spatial_dims": 3},
        "brain-unet": {
            "spatial_dims": 3,
            "in_channels": 1,
            "out_channels": 3,
            "channels": (8, 16, 32, 64),
            "strides": (2, 2, 2),
            "num_res_units": 1,
            "norm": "instance",
        },
    }
)


def make_network(name: str, **overrides: Any) -> nn.Module:
    """Returns the untrained network `name`; `overrides` may change how it computes (e.g. flash attention)."""
    kinds = {"brain-swinunetr": SwinUNETR, "brain-unet": UNet}
    if name not in kinds:
        raise ValueError(f"expected one of {', '.join(kinds)}, found {name!r}")
    network: nn.Module = kinds[name](**ARGUMENTS[name], **overrides)
    return network


def save_weights(network: nn.Module, path: Path, dtype: torch.dtype) -> None:
    """Writes the whole state of `network` as safetensors, by atomic rename.

    Floating-point tensors are stored as `dtype`. The index tables of the attention windows are int64 in the network and
    hold numbers below 2197; they are stored as int16. `load_state_dict` casts both back.
    """
    state = {key: _narrow(value.detach().cpu(), dtype) for key, value in network.state_dict().items()}
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(save(state))
    partial.replace(path)


def _narrow(value: Tensor, dtype: torch.dtype) -> Tensor:
    if value.is_floating_point():
        return value.to(dtype).contiguous()
    if int(value.max()) > torch.iinfo(torch.int16).max:
        raise ValueError(f"expected indices that fit int16, found {int(value.max())}")
    return value.to(torch.int16).contiguous()


def load_network(name: str, path: Path, **overrides: Any) -> nn.Module:
    """Returns the network `name` in evaluation mode and fp32, with the weights of `path`; every key must match."""
    network = make_network(name, **overrides)
    network.load_state_dict(load_file(path), strict=True)
    return network.eval()


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
