"""Small networks as ONNX files, exported once per test run, and hand-made graphs that break in known ways."""

import functools
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
from monai.networks.nets import SwinUNETR, UNet
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tests.support.exporting import exported_once
from voxtile_build.graph.optimise import simplify

SWIN_ROI = (64, 32, 32)
UNET_ROI = (32, 32, 32)


class PlainConvNet(torch.nn.Module):
    """The shape of an nnU-Net: blocks of convolution, instance norm and leaky ReLU, two scales, one skip."""

    def __init__(self, channels: int = 8, labels: int = 3) -> None:
        super().__init__()
        self.stem = _block(1, channels, 1)
        self.down = _block(channels, 2 * channels, 2)
        self.up = torch.nn.ConvTranspose3d(2 * channels, channels, 2, 2)
        self.merge = _block(2 * channels, channels, 1)
        self.head = torch.nn.Conv3d(channels, labels, 1)

    def forward(self, roi: torch.Tensor) -> torch.Tensor:
        stem = self.stem(roi)
        merged: torch.Tensor = self.head(self.merge(torch.cat([self.up(self.down(stem)), stem], dim=1)))
        return merged


def _block(inputs: int, outputs: int, stride: int) -> torch.nn.Sequential:
    return torch.nn.Sequential(
        torch.nn.Conv3d(inputs, outputs, 3, stride, 1),
        torch.nn.InstanceNorm3d(outputs, affine=True),
        torch.nn.LeakyReLU(0.01),
        torch.nn.Conv3d(outputs, outputs, 3, 1, 1),
        torch.nn.InstanceNorm3d(outputs, affine=True),
        torch.nn.LeakyReLU(0.01),
    )


def export(network: torch.nn.Module, roi: tuple[int, ...], opset: int = 20) -> onnx.ModelProto:
    return exported_once(network.eval(), ("small", roi, opset), lambda: _exported(network, roi, opset))


def _exported(network: torch.nn.Module, roi: tuple[int, ...], opset: int) -> onnx.ModelProto:
    batch = torch.export.Dim("batch", min=1, max=8)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            (torch.zeros(2, 1, *roi),),
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=({0: batch},),
            input_names=["roi"],
            output_names=["scores"],
            optimize=False,  # `simplify` gives the same graph in a third of the time
            verbose=False,
        )
        assert program is not None
        simplify(program.model)
    model: onnx.ModelProto = program.model_proto
    return model


@functools.cache
def swin(flash: bool = False) -> onnx.ModelProto:
    """One shifted-window block per run is enough for a mask: depth 2 in the first stage only."""
    torch.manual_seed(1)
    network = SwinUNETR(in_channels=1, out_channels=3, feature_size=12, depths=(2, 1, 1, 1), use_flash_attention=flash)
    return export(network, SWIN_ROI, 23 if flash else 20)


@functools.cache
def unet() -> onnx.ModelProto:
    torch.manual_seed(2)
    return export(UNet(3, 1, 3, (8, 16, 32), (2, 2)), UNET_ROI)


@functools.cache
def plain() -> onnx.ModelProto:
    torch.manual_seed(3)
    return export(PlainConvNet(), UNET_ROI)


def loud_network(up: float = 1e6, down: float = 1e-6) -> torch.nn.Module:
    """`loud` lifts the activations above fp16's 65504, with weights that fit where `up` is small enough; `quiet` brings
    them back."""
    torch.manual_seed(4)
    network = torch.nn.Sequential()
    network.add_module("first", torch.nn.Conv3d(1, 8, 3, padding=1))
    network.add_module("loud", torch.nn.Conv3d(8, 8, 3, padding=1))
    network.add_module("quiet", torch.nn.Conv3d(8, 8, 3, padding=1))
    network.add_module("act", torch.nn.ReLU())
    network.add_module("middle", torch.nn.Conv3d(8, 8, 3, padding=1))
    network.add_module("last", torch.nn.Conv3d(8, 3, 1))
    with torch.no_grad():
        for name, factor in (("loud", up), ("quiet", down)):
            layer = network.get_submodule(name)
            layer.weight.mul_(factor)
            layer.bias.mul_(max(1.0, factor))
        network.get_submodule("last").weight.mul_(20)
    return network.eval()


@functools.cache
def overflowing() -> onnx.ModelProto:
    return export(loud_network(2e5, 5e-6), (24, 20, 16))


def blobs(roi: tuple[int, ...], batch: int = 1, seed: int = 5) -> NDArray[np.float32]:
    """Smooth asymmetric input [batch, 1, *roi], roughly within ±3."""
    axes = np.meshgrid(*(np.linspace(-1, 1, size) for size in roi), indexing="ij")
    phases = np.random.default_rng(seed).normal(size=(batch, len(roi)))
    waves = [
        sum(np.sin(3 * (i + 1) * axis + p) for i, (axis, p) in enumerate(zip(axes, row, strict=True))) for row in phases
    ]
    return np.stack(waves)[:, None].astype(np.float32)


def graph_of(
    nodes: list[onnx.NodeProto], constants: Mapping[str, NDArray[Any]], domain: str | None = None
) -> onnx.ModelProto:
    """x [batch, 1, 8, 8] float to y float."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    opsets = [helper.make_opsetid("", 20)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    graph = helper.make_graph(nodes, "graph", [x], [y], initializers)
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)
