"""Transposed convolutions that end in a sum, in int8: near what they were, and in int8 indeed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import openvino as ov
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tests.support.small_networks import blobs, export
from voxtile_build.engines.openvino.core import core as the_core
from voxtile_build.engines.openvino.quantize import quantize_openvino
from voxtile_build.engines.openvino.upsample import upsample_by_products
from voxtile_build.engines.openvino.upsample_int8 import OPERATOR, quantize_upsampling
from voxtile_build.graph.optimise import optimise
from voxtile_build.graph.passes.compose_upsample import compose_upsample

ROI = (16, 8, 12)
# Three roundings to 255 steps, of the input, the weights and the sum; spread over the values of one tensor.
EIGHT_BITS = 0.03


class Net(nn.Module):
    """Two grids and one skip; `shift` moves what is upsampled away from zero, `slope` is of its activation."""

    def __init__(self, shift: float = 0.0, slope: float = 0.01, residual: bool = False) -> None:
        super().__init__()
        torch.manual_seed(31)
        self.shift = shift
        self.stem, self.down = nn.Conv3d(1, 8, 3, padding=1), nn.Conv3d(8, 16, 3, 2, padding=1)
        self.norm, self.activate = nn.InstanceNorm3d(16, affine=True), nn.LeakyReLU(slope)
        self.up = nn.ConvTranspose3d(16, 8, 2, 2)
        self.over, self.beside = nn.Conv3d(16, 8, 3, padding=1), nn.Conv3d(16, 8, 1) if residual else None
        self.after, self.head = nn.InstanceNorm3d(8, affine=True), nn.Conv3d(8, 3, 1)

    def forward(self, image: Tensor) -> Tensor:
        skip = torch.relu(self.stem(image))
        low = self.activate(self.norm(self.down(skip))) + self.shift
        together = torch.cat([self.up(low), skip], 1)
        values = self.over(together)
        if self.beside is not None:
            values = torch.relu(self.after(values)) + self.beside(together)
        scores: Tensor = self.head(torch.relu(self.after(values)))
        return scores


def model_of(network: nn.Module) -> ov.Model:
    composed = compose_upsample(optimise(export(network, ROI)))
    return the_core().read_model(composed.SerializeToString())


def images(seeds: Sequence[int] = range(3)) -> list[dict[str, NDArray[np.float32]]]:
    return [{"roi": blobs(ROI, seed=seed).astype(np.float32)} for seed in seeds]


def compiled(model: ov.Model) -> ov.CompiledModel:
    fixed = model.clone()
    fixed.reshape({"roi": [1, 1, *ROI]})
    return the_core().compile_model(fixed, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def transposed(model: ov.Model) -> list[ov.Node]:
    return [operation for operation in model.get_ordered_ops() if operation.get_type_name() == OPERATOR]


def precisions(one: ov.CompiledModel) -> list[str]:
    """What the engine runs its transposed convolutions in."""
    nodes = [operation.get_rt_info() for operation in one.get_runtime_model().get_ops()]
    return [node["runtimePrecision"].value for node in nodes if node["layerType"].value == "Deconvolution"]


def distance(expected: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean((expected - found) ** 2)) / np.std(expected))


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("shift", "slope"), [(0.0, 0.01), (0.0, 0.0), (0.0, 0.5), (-2.0, 0.01), (1.5, 0.0)])
def test_scores_stay_near_and_the_engine_takes_int8(shift: float, slope: float, residual: bool) -> None:
    model = model_of(Net(shift, slope, residual))
    changed = model.clone()
    count = 2 if residual else 1
    assert quantize_upsampling(changed, images()) == count
    engines = compiled(model), compiled(changed)
    # Unsigned where nothing, or less than a step, lies below zero: twice as fine.
    assert precisions(engines[1]) == ["u8" if slope == 0 <= shift else "i8"] * count
    for feed in images(range(3, 6)):
        expected, found = (np.array(engine(feed)[0]) for engine in engines)
        assert 0 < distance(expected, found) < EIGHT_BITS


def test_weights_of_each_channel_have_their_own_steps() -> None:
    network = Net()
    with torch.no_grad():
        network.over.weight[3] *= 1000
        network.over.weight[5] = 0
        network.over.bias[5] = 1
    model = model_of(network)
    changed = model.clone()
    assert quantize_upsampling(changed, images()) == 1
    weights, rounded = (transposed(one)[0].input_value(1).get_node() for one in (model, changed))
    expected, scale = weights.get_data(), rounded.input_value(1).get_node().get_data()
    found = rounded.input_value(0).get_node().input_value(0).get_node().get_data() * scale
    assert scale.shape == (1, 8, 1, 1, 1)
    for channel in range(8):
        step = np.abs(expected[:, channel]).max() / 127
        assert np.abs(found[:, channel] - expected[:, channel]).max() <= step / 2 * (1 + 1e-4)
    assert np.isfinite(compiled(changed)(images()[0])[0]).all()


def test_a_kept_layer_stays() -> None:
    model = model_of(Net())
    names = frozenset(node.get_friendly_name() for node in transposed(model))
    assert quantize_upsampling(model, images(), names) == 0
    assert set(precisions(compiled(model))) == {"f32"}
    quantized = quantize_openvino(model_of(Net()), images(), names)
    assert set(precisions(compiled(quantized))) == {"f32"}


def test_constant_values_have_a_range_too() -> None:
    """An empty calibration scan: everything is one value, or zero."""
    model = model_of(Net(slope=0.0))
    empty = [{"roi": np.zeros((1, 1, *ROI), np.float32)}]
    assert quantize_upsampling(model, empty) == 1
    assert np.isfinite(compiled(model)(images()[0])[0]).all()


def test_one_that_adds_a_bias_alone_is_left_to_products() -> None:
    torch.manual_seed(4)
    layers = nn.Conv3d(1, 4, 3, 2, padding=1), nn.ConvTranspose3d(4, 4, 2, 2), nn.InstanceNorm3d(4), nn.Conv3d(4, 2, 1)
    model = model_of(nn.Sequential(*layers))
    names = frozenset(node.get_friendly_name() for node in transposed(model))
    assert upsample_by_products(model, names) == 0
    assert quantize_upsampling(model, images()) == 0
    assert upsample_by_products(model) == 1


def test_the_half_of_a_sum_is_not_made_products() -> None:
    """A residual convolution of 1×1 leaves blocks that do not overlap; NNCF's pass has both in int8."""
    model = model_of(Net(residual=True))
    assert sorted(node.input_value(1).get_node().get_output_shape(0)[-1] for node in transposed(model)) == [2, 4]
    quantized = quantize_openvino(model, images())
    assert len(transposed(quantized)) == 2
    assert set(precisions(compiled(quantized))) <= {"u8", "i8"}
    for feed in images(range(3, 6)):
        assert distance(compiled(model)(feed)[0], compiled(quantized)(feed)[0]) < 2 * EIGHT_BITS
