"""The networks that are measured. Weights are random, from a seed; the last layer is fitted to the made-up scan.

With a fitted last layer masks are compact regions, as a trained network's are, and not noise in which every rounding
changes voxels. Dice says how far two ways agree, and nothing about how good a network is.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from . import phantom
from .rates import allow_tf32
from .settings import Settings

SEED = 20
ATTENTIVE = ("swinunetr",)
"""The networks that have attention."""
FULL = {
    "swinunetr": ("SwinUNETR 48", (96, 96, 96)),
    "nnunet": ("nnU-Net PlainConvUNet 32…320", (128, 128, 128)),
}
TINY = {
    "swinunetr": ("window attention of 4 features", (16, 16, 16)),
    "nnunet": ("nnU-Net PlainConvUNet 4, 8", (16, 16, 16)),
}
"""Titles and tiles. The smallest SwinUNETR takes a CPU a minute a tile in bf16: the rehearsal has a part of it."""
RIDGE = 1e-3
"""How much the fit of the last layer prefers small weights, relative to the mean of its inputs' squares."""
SURE = 8.0
"""The logit that the last layer is fitted to for the right label; it is 0 for the others."""


@dataclass(frozen=True)
class Subject:
    """A network, its input and what is expected of it.

    Attributes:
        key: in the data, "swinunetr" or "nnunet".
        title: for readers.
        roi: voxels of a tile along each axis.
        settings: of the run.
    """

    key: str
    title: str
    roi: tuple[int, int, int]
    settings: Settings

    def network(self, fused: bool = False) -> nn.Module:
        """Returns the network in fp32 on the device, with the weights that every stage has.

        Args:
            fused: with PyTorch's fused attention, where a network has attention.
        """
        network = _made(self, fused).to(self.settings.device)
        file = self.settings.work / f"{self.key}.pt"
        if not file.exists():
            fit_head(network, self.tiles(1), self.labels, self.settings.scores)
            torch.save(network.state_dict(), partial := file.with_suffix(".partial"))
            partial.replace(file)
        network.load_state_dict(torch.load(file, map_location=self.settings.device, weights_only=True))
        return network

    @cached_property
    def labels(self) -> torch.Tensor:
        """[*roi] uint8: the labels of every tile."""
        return phantom.labels_of(self.roi, self.settings.scores, self.settings.device)

    def tiles(self, batch: int) -> torch.Tensor:
        """[batch, 1, *roi] fp32: one place with other noise in each."""
        scans = [phantom.values_of(self.labels, self.settings.scores, seed) for seed in range(batch)]
        return phantom.normalised(torch.stack(scans))[:, None]

    @cached_property
    def work(self) -> tuple[int, int]:
        """The operations of one tile (a multiplication and its addition are two), and its largest tensor's elements.

        Counted without computing anything.
        """
        network, tile = _made(self, False).to("meta"), torch.empty(1, 1, *self.roi, device="meta")
        with torch.no_grad(), Largest() as largest, FlopCounterMode(display=False) as counter:
            network(tile)
        return counter.get_total_flops(), largest.elements


def subject_of(key: str, settings: Settings) -> Subject:
    """Returns the network "swinunetr" or "nnunet"; in the rehearsal a very small one of its kind."""
    title, roi = settings.pick(FULL, TINY)[key]
    return Subject(key, title, roi, settings)


def fit_head(network: nn.Module, tiles: torch.Tensor, labels: torch.Tensor, scores: int) -> None:
    """Fits the last 1×1×1 convolution to `labels` [*roi] of `tiles` [1, 1, *roi], every label with the same weight.

    By ridge regression from the layer's inputs. Changes the network.
    """
    head = last_layer(network, scores)
    kept: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0].detach()))
    before = allow_tf32(False)
    with hook, torch.no_grad():
        network(tiles)
    allow_tf32(before)
    inputs = kept[0][0].flatten(1).double()
    inputs = torch.cat([inputs, torch.ones_like(inputs[:1])])
    truth = nn.functional.one_hot(labels.flatten().long(), scores).double()
    weight = (truth / truth.sum(0).clamp_min(1)).sum(1)
    gram = (inputs * weight) @ inputs.T
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    fitted = torch.linalg.solve(gram, (inputs * weight) @ truth) * SURE
    with torch.no_grad():
        head.weight.copy_(fitted[:-1].T.reshape(head.weight.shape))
        head.bias.copy_(fitted[-1])  # type: ignore[union-attr]


def last_layer(network: nn.Module, scores: int) -> nn.Conv3d:
    """Returns the last 1×1×1 convolution that gives so many scores."""
    heads = [
        layer for layer in network.modules()
        if isinstance(layer, nn.Conv3d) and layer.kernel_size == (1, 1, 1) and layer.out_channels == scores
    ]  # fmt: skip
    return heads[-1]


class Largest(TorchDispatchMode):
    """Remembers the elements of the largest tensor that any operation gives."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = result if isinstance(result, (tuple, list)) else [result]
        sizes = [tensor.numel() for tensor in tensors if isinstance(tensor, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


def _made(subject: Subject, fused: bool) -> nn.Module:
    """Returns the network with random weights, on the CPU."""
    with torch.random.fork_rng(devices=()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(SEED)
        return MAKERS[subject.key](subject.settings, fused).eval()


def _swinunetr(settings: Settings, fused: bool) -> nn.Module:
    from monai.networks.nets import SwinUNETR

    if settings.tiny:
        return Windows(settings.scores, fused)
    network: nn.Module = SwinUNETR(
        in_channels=1, out_channels=settings.scores, feature_size=48, spatial_dims=3, use_flash_attention=fused
    )
    return network


class Windows(nn.Module):
    """SwinUNETR's encoder at a few features, and one layer instead of its decoder."""

    def __init__(self, scores: int, fused: bool) -> None:
        from monai.networks.nets.swin_unetr import SwinTransformer

        super().__init__()
        self.encoder = SwinTransformer(
            1, 4, (4, 4, 4), (2, 2, 2), (2, 1, 1, 1), (1, 1, 1, 1), spatial_dims=3, use_flash_attention=fused
        )
        self.up = nn.ConvTranspose3d(8, 4, 4, 4)
        self.head = nn.Conv3d(5, scores, 1)

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """Returns scores [batch, score, *roi] of tiles [batch, 1, *roi]."""
        features: torch.Tensor = self.up(self.encoder(tiles)[1])
        scores: torch.Tensor = self.head(torch.cat([tiles, features], 1))
        return scores


def _nnunet(settings: Settings, fused: bool) -> nn.Module:
    """The network that nnU-Net plans for most data sets, at its usual widths."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    widths = settings.pick((32, 64, 128, 256, 320, 320), (4, 8))
    network: nn.Module = PlainConvUNet(
        1, len(widths), widths, nn.Conv3d, 3, (1, *itertools.repeat(2, len(widths) - 1)), 2, settings.scores, 2,
        conv_bias=True, norm_op=nn.InstanceNorm3d, norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True}, deep_supervision=False,
    )  # fmt: skip
    return network


MAKERS: Mapping[str, Callable[[Settings, bool], nn.Module]] = {"swinunetr": _swinunetr, "nnunet": _nnunet}
