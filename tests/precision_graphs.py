"""Networks that reduced precision treats in known ways, and their graphs, for the tests of precision."""

from __future__ import annotations

from pathlib import Path

import torch
from monai.networks.blocks import SABlock
from torch import Tensor, nn

from voxtile_build.centred_norms import centre_norms
from voxtile_build.composing import to_onnx
from voxtile_build.graphs import Graphs
from voxtile_build.spec import Spec
from voxtile_build.torch_to_onnx import checked, save
from voxtile_build.wrapper import wrap


def graphs_of(network: nn.Module, spec: Spec, folder: Path) -> Graphs:
    """The graphs that a build would hand to the engines."""
    wrapper = wrap(network, spec)
    traced = to_onnx(wrapper, spec)
    files = save(checked(centre_norms(traced)), folder / "source.onnx")
    return Graphs(files[0], traced, wrapper, spec)


class Attending(nn.Module):
    """Convolutions around MONAI's own attention block over all voxels of a coarse grid."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.down = nn.Conv3d(1, 16, 4, 4)
        self.attend = SABlock(16, 2)
        self.up = nn.ConvTranspose3d(16, 3, 4, 4)

    def forward(self, image: Tensor) -> Tensor:
        coarse = self.down(image)
        tokens = coarse.flatten(2).transpose(1, 2)
        mixed = (tokens + self.attend(tokens)).transpose(1, 2).reshape(coarse.shape)
        scores: Tensor = self.up(mixed)
        return scores


class Deceiving(nn.Module):
    """Says that it has a fused form, which computes something else."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.layer = nn.Conv3d(1, 3, 3, padding=1)
        self.use_flash_attention = False

    def forward(self, image: Tensor) -> Tensor:
        scores: Tensor = self.layer(image)
        return scores * 1.01 if self.use_flash_attention else scores
