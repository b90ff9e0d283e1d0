"""Small specs and networks that the tests of the build side share."""

from __future__ import annotations

import torch
from monai.networks.nets import UNet
from torch import nn

from tests.support.specs import CERTIFICATES, FIELDS, PROVENANCE, ROI, built_card, fields, spec

__all__ = ["CERTIFICATES", "FIELDS", "PROVENANCE", "ROI", "Linear", "built_card", "fields", "spec", "tiny_unet"]


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
