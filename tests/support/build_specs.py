"""Small specs and networks that the tests of the build side share."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import UNet
from torch import nn

from voxtile.card import Card, Certificate, Provenance
from voxtile_build.repository.card import card_of
from voxtile_build.spec.spec import Spec, parse_spec

ROI = (16, 8, 12)

FIELDS: dict[str, Any] = {
    "name": "tiny",
    "network": {
        "name": "UNet",
        "args": {"spatial_dims": 3, "in_channels": 1, "out_channels": 3, "channels": [4, 8], "strides": [2]},
    },
    "input": {"channels": ["T1"]},
    "output": {"labels": ["background", "one", "two"]},
    "tiling": {"roi_size": list(ROI), "overlap": 0.25},
    "serving": {"max_batch_size": 2},
}


def fields(**changes: dict[str, Any] | Any) -> dict[str, Any]:
    """The fields of a small valid spec; tables in `changes` are merged into those of the same name."""
    result = copy.deepcopy(FIELDS)
    for key, value in changes.items():
        merged = {**result.get(key, {}), **value} if isinstance(value, dict) else value
        result[key] = merged
    return result


def spec(**changes: dict[str, Any] | Any) -> Spec:
    """A small spec with `changes`."""
    return parse_spec(fields(**changes), "tiny.toml", Path())


CERTIFICATES = {
    "openvino": Certificate(
        sha256="c" * 64, accepted=True, precision="fp32", dice_min=1.0, changed_fraction=0.0, max_abs_error=1e-6
    )
}
PROVENANCE = Provenance(network="UNet", weights_sha256="a" * 64, onnx_sha256="b" * 64, versions={"torch": "2"})


def built_card(**changes: dict[str, Any] | Any) -> Card:
    """The card of a small spec with `changes`, pointing to openvino."""
    return card_of(spec(**changes), "openvino", CERTIFICATES, PROVENANCE)


def tiny_unet(seed: int = 5, channels: int = 1) -> nn.Module:
    """A UNet with random weights, the same ones for the same seed."""
    torch.manual_seed(seed)
    network: nn.Module = UNet(3, channels, 3, channels=(4, 8), strides=(2,))
    return network.eval()


class Linear(nn.Module):
    """As many outputs as asked for, each another multiple of the first channel: logits known in advance."""

    factors: torch.Tensor

    def __init__(self, factors: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("factors", torch.tensor(factors))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        factors = self.factors.reshape(1, -1, *(1,) * (x.ndim - 2))
        return x[:, :1] * factors
