"""Upsampling and the convolution over it as one: the same scores up to the border, with fewer products."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from monai.networks.nets import DynUNet
from torch import Tensor, nn

from tests.support.build_specs import spec
from tests.support.graph_passes import apply_pass
from tests.support.precision_graphs import graphs_of
from tests.support.small_networks import SWIN_ROI, blobs, export, swin
from voxtile_build.engines.openvino.core import core as the_core
from voxtile_build.graph.graphs import BASE, FP32, FUSED
from voxtile_build.graph.optimise import optimise
from voxtile_build.graph.passes.compose_upsample import compose_upsample, composed
from voxtile_build.sessions import run_graph

ROI = (5, 4, 3)
ROUNDING = 1e-5
# Norms in OpenVINO and in ONNX Runtime differ by this much, before the pass as well.
NORMS = 2e-4
Axes = tuple[int, ...]


class Decoder(nn.Module):
    """What a U-Net does between two of its grids.

    order: of what is put together: u the upsampled values, s the skipped ones, t twice the skipped ones.
    """

    def __init__(
        self, stride: Axes, kernel: Axes, order: str = "us", bias: bool = True, residual: bool = False
    ) -> None:
        super().__init__()
        torch.manual_seed(21)
        convolution, transposed = {2: (nn.Conv2d, nn.ConvTranspose2d), 3: (nn.Conv3d, nn.ConvTranspose3d)}[len(stride)]
        self.order = order
        self.skip = convolution(1, 3, 1)
        self.low = convolution(3, 5, stride, stride)
        self.up = transposed(5, 4, stride, stride, bias=bias)
        channels = sum({"u": 4, "s": 3, "t": 3}[part] for part in order)
        pads = tuple(size // 2 for size in kernel)
        self.over = convolution(channels, 2, kernel, padding=pads, bias=bias)
        self.beside = convolution(channels, 2, 1, bias=bias) if residual else None

    def forward(self, image: Tensor) -> Tensor:
        skip = self.skip(image)
        # Far from zero, so that what lies outside of the grid is unlike what lies inside.
        parts = {"u": self.up(self.low(skip) + 1), "s": skip, "t": 2 * skip}
        together = torch.cat([parts[part] for part in self.order], 1) if len(self.order) > 1 else parts["u"]
        scores: Tensor = self.over(together)
        return torch.relu(scores) if self.beside is None else torch.relu(scores) + self.beside(together)


def optimised(network: nn.Module, roi: Axes) -> onnx.ModelProto:
    return optimise(export(network, roi))


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def check_composed(model: onnx.ModelProto, roi: Axes, count: int = 1, openvino: float = ROUNDING) -> onnx.ModelProto:
    """The pass leaves nothing at the size of the finer grid but sums of convolutions, and every score in its place."""
    image = np.concatenate([blobs(roi, seed=seed) for seed in range(2)]).astype(np.float32)
    after, _ = apply_pass("compose", compose_upsample, model, [{"roi": image}], tolerance=ROUNDING)
    before = {node.name for node in model.graph.node if node.op_type == "ConvTranspose"}
    left = {node.name for node in after.graph.node if node.op_type == "ConvTranspose"}
    assert len(before - left) == count
    # OpenVINO, which it is made for, says the same.
    expected = run_graph(model, [{"roi": image}])[0]["scores"]
    core = the_core()
    read = core.read_model(after.SerializeToString())
    compiled = core.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    np.testing.assert_allclose(compiled({"roi": image})[0], expected, rtol=0, atol=openvino * np.abs(expected).max())
    return after


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("stride", "kernel"),
    [
        ((2, 2, 2), (3, 3, 3)),
        ((3, 3, 3), (3, 3, 3)),
        ((1, 2, 2), (1, 3, 3)),
        ((1, 2, 2), (3, 3, 3)),
        ((2, 2, 2), (1, 1, 1)),
        ((3, 2, 1), (5, 1, 3)),
        ((2, 2), (3, 3)),
        ((2, 2), (7, 7)),
    ],
)
def test_every_score_keeps_its_value(stride: Axes, kernel: Axes, bias: bool) -> None:
    roi = tuple(size * by for size, by in zip(ROI, stride, strict=False))
    after = check_composed(optimised(Decoder(stride, kernel, bias=bias), roi), roi)
    assert operators(after)["Concat"] == 0
    # Only where a kernel reaches outside does the grid's end matter to a bias.
    assert operators(after)["Pad"] == (1 if bias and max(kernel) > 1 else 0)


@pytest.mark.parametrize(("order", "left"), [("u", 0), ("us", 0), ("su", 0), ("sut", 1), ("stu", 1)])
def test_whatever_is_put_beside_and_in_whatever_order(order: str, left: int) -> None:
    after = check_composed(optimised(Decoder((2, 2, 2), (3, 3, 3), order), (12, 8, 16)), (12, 8, 16))
    assert operators(after)["Concat"] == left


def test_two_readers_of_one_concatenation() -> None:
    """As in MONAI's residual blocks, where a convolution of 1×1 goes around that of 3×3."""
    model = optimised(Decoder((2, 2, 2), (3, 3, 3), residual=True), (12, 8, 16))
    after = check_composed(model, (12, 8, 16))
    kernels = [
        tuple(next(a.ints for a in node.attribute if a.name == "pads"))
        for node in after.graph.node
        if node.op_type == "ConvTranspose"
    ]
    assert sorted(kernels) == [(0,) * 6, (1,) * 6]
    assert operators(after)["Pad"] == 1


def test_names_of_convolutions_stay() -> None:
    model = optimised(Decoder((2, 2, 2), (3, 3, 3)), (12, 8, 16))
    after = compose_upsample(model)
    names = [node.name for node in model.graph.node if node.op_type == "Conv"]
    assert [node.name for node in after.graph.node if node.op_type == "Conv"] == names


class Broken(Decoder):
    """Has something between the two, or reads the upsampled values elsewhere too."""

    def __init__(self, how: str) -> None:
        super().__init__((2, 2, 2), (3, 3, 3))
        self.how = how
        self.norm = nn.InstanceNorm3d(4)
        if how == "overlapping":
            self.up = nn.ConvTranspose3d(5, 4, 4, 2, padding=1)
        if how == "grouped":
            self.over = nn.Conv3d(7, 7, 3, padding=1, groups=7)
        if how == "dilated":
            self.over = nn.Conv3d(7, 2, 3, padding=2, dilation=2)
        if how == "strided":
            self.over = nn.Conv3d(7, 2, 3, 2, padding=1)
        if how == "shrinking":
            self.over = nn.Conv3d(7, 2, 3)
        if how == "even":
            self.over = nn.Conv3d(7, 2, 4, padding=2)
        if how == "more products":
            self.low, self.up = nn.Conv3d(3, 64, 2, 2), nn.ConvTranspose3d(64, 1, 2, 2)
            self.over = nn.Conv3d(4, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        skip = self.skip(image)
        up = self.up(self.low(skip))
        if self.how == "normed":
            up = self.norm(up)
        together = torch.cat([up, skip], 1)
        if self.how == "along another axis":
            together = self.over(torch.cat([torch.cat([up, up], 2), torch.cat([skip, skip], 2)], 1))
            return torch.relu(together)
        scores: Tensor = torch.relu(self.over(together))
        if self.how == "read twice":
            return scores + up[:, :1]
        if self.how == "concatenation read":
            return scores + together[:, :1]
        return scores


@pytest.mark.parametrize(
    "how",
    [
        *("normed", "read twice", "concatenation read", "along another axis", "overlapping", "grouped", "dilated"),
        *("strided", "shrinking", "even", "more products"),
    ],
)
def test_what_is_not_one_linear_map_stays_as_it_is(how: str) -> None:
    model = optimised(Broken(how), (12, 8, 16))
    assert compose_upsample(model) is model


def test_a_network_that_ends_there_stays_as_it_is() -> None:
    class Ends(Decoder):
        """Gives the convolution itself as scores."""

        def forward(self, image: Tensor) -> Tensor:
            skip = self.skip(image)
            scores: Tensor = self.over(torch.cat([self.up(self.low(skip)), skip], 1))
            return scores

    model = optimised(Ends((2, 2, 2), (3, 3, 3)), (12, 8, 16))
    assert compose_upsample(model) is model


def test_swin_unetr_and_dynunet() -> None:
    after = check_composed(optimise(swin()), SWIN_ROI, 5, NORMS)
    assert operators(after)["Add"] - operators(swin())["Add"] >= 10
    torch.manual_seed(2)
    kernels, strides = [[3, 3, 1], [3, 3, 3], [3, 3, 3]], [[1, 1, 1], [2, 2, 1], [2, 2, 2]]
    dynamic = DynUNet(3, 1, 2, kernels, strides, strides[1:], filters=[4, 8, 12], norm_name="instance")
    check_composed(optimised(dynamic, (16, 24, 8)), (16, 24, 8), 2, NORMS)


@pytest.mark.parametrize("stride", [(2, 3), (1, 2)])
def test_the_composed_kernel_is_torch_s_own_composition(stride: Axes) -> None:
    rng = np.random.default_rng(5)
    up, over = rng.normal(size=(3, 4, *stride)), rng.normal(size=(2, 4, 3, 5))
    image = torch.from_numpy(rng.normal(size=(1, 3, 6, 5)))
    expected = torch.conv2d(torch.conv_transpose2d(image, torch.from_numpy(up), stride=stride), torch.from_numpy(over))
    found = torch.conv_transpose2d(image, torch.from_numpy(composed(up, over)), stride=stride, padding=(2, 4))
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_a_bias_keeps_more_bits_than_bf16_has() -> None:
    """Weights cut to bf16's 8 bits, as an engine does: the bias is still right to 16."""
    decoder = Decoder((2, 2, 2), (3, 3, 3))
    with torch.no_grad():
        for layer in (decoder.low, decoder.over, decoder.up):
            # One bit each, so that nothing but the bias of `up` is rounded.
            layer.weight.copy_(torch.sign(layer.weight))
        decoder.skip.weight.zero_()
        for layer in (decoder.skip, decoder.low, decoder.over):
            layer.bias.zero_()
        decoder.over.bias.fill_(1000.0)
    model = optimised(decoder, (12, 8, 16))
    after = compose_upsample(model)
    for tensor in after.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32:
            cut = (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(cut, tensor.name))
    feed = {"roi": np.zeros((1, 1, 12, 8, 16), np.float32)}
    expected, found = (run_graph(one, [feed])[0]["scores"] for one in (model, after))
    largest = np.abs(expected - 1000).max()
    assert 0 < np.abs(found - expected).max() < largest * 2.0**-13


def test_it_is_done_only_for_who_asks_and_reported(tmp_path: Path) -> None:
    network = nn.Sequential(Decoder((2, 2, 2), (3, 3, 3)), nn.Conv3d(2, 3, 1))
    graphs = graphs_of(network, spec(), tmp_path)
    assert FUSED not in graphs.reports
    assert operators(graphs.fused)["Concat"] == 0
    assert operators(graphs.base)["Concat"] == 1
    report = graphs.reports_of((BASE, FUSED))[FUSED][0]
    assert report.changed["Concat"] == (1, 0)
    assert report.max_abs is not None
    assert set(graphs.reports_of((BASE, FP32))) == {BASE, FP32}
    assert operators(onnx.load(graphs.fused_files[0]))["Pad"] == 1
    assert operators(onnx.load(graphs.files[0]))["Pad"] == 0
