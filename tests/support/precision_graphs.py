"""Networks that reduced precision treats in known ways, and their graphs, for the tests of precision."""

from __future__ import annotations

from pathlib import Path

import torch
from monai.networks.blocks import SABlock
from torch import Tensor, nn

from voxtile_build.graph.graphs import Graphs
from voxtile_build.graph.wrapper import wrap
from voxtile_build.spec.spec import Spec


def graphs_of(network: nn.Module, spec: Spec, folder: Path) -> Graphs:
    """The graphs that a build would hand to the engines."""
    return Graphs(wrap(network, spec), spec, folder)


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
