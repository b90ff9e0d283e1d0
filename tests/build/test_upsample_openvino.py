"""Transposed convolutions as products and a rearrangement: the same values, wherever their blocks do not overlap."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import openvino as ov
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from tests.support.small_networks import export
from voxtile_build.engines.openvino.core import core as the_core
from voxtile_build.engines.openvino.upsample import OPERATOR, upsample_by_products

ROI = (5, 4, 3)
FP32 = {"INFERENCE_PRECISION_HINT": "f32"}
# Eight products of a few channels each, summed in another order.
ROUNDING = 1e-5


def model_of(*layers: nn.Module, roi: tuple[int, ...] = ROI) -> ov.Model:
    torch.manual_seed(11)
    return the_core().read_model(export(nn.Sequential(*layers), roi).SerializeToString())


def scores(model: ov.Model, roi: tuple[int, ...] = ROI) -> NDArray[np.float32]:
    image = np.random.default_rng(12).standard_normal((2, 1, *roi)).astype(np.float32)
    return np.array(the_core().compile_model(model, "CPU", FP32)({"roi": image})[0])


def operators(model: ov.Model) -> Counter[str]:
    return Counter(operation.get_type_name() for operation in model.get_ops())


def check_same(model: ov.Model, replaced: int, roi: tuple[int, ...] = ROI, **more: Any) -> ov.Model:
    changed = model.clone()
    assert upsample_by_products(changed, **more) == replaced
    assert operators(changed)["DepthToSpace"] == replaced
    assert operators(changed)[OPERATOR] == operators(model)[OPERATOR] - replaced
    expected = scores(model, roi)
    np.testing.assert_allclose(scores(changed, roi), expected, atol=ROUNDING * np.abs(expected).max())
    return changed


# Either side of 64 channels the blocks' axis lies elsewhere.
@pytest.mark.parametrize("channels", [6, 64])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("block", [2, 3])
def test_blocks_that_do_not_overlap_are_the_same_in_both_orders(channels: int, bias: bool, block: int) -> None:
    layers = nn.Conv3d(1, 4, 1), nn.ConvTranspose3d(4, channels, block, block, bias=bias), nn.Conv3d(channels, 2, 1)
    check_same(model_of(*layers), 1)


def test_two_dimensions() -> None:
    layers = nn.Conv2d(1, 4, 1), nn.ConvTranspose2d(4, 6, 2, 2), nn.ConvTranspose2d(6, 3, 2, 2)
    check_same(model_of(*layers, roi=(6, 5)), 2, (6, 5))


@pytest.mark.parametrize(
    "layer",
    [
        nn.ConvTranspose3d(4, 6, 3, 2),
        nn.ConvTranspose3d(4, 6, 2, 2, padding=1),
        nn.ConvTranspose3d(4, 6, 2, 2, groups=2),
        nn.ConvTranspose3d(4, 6, 2, 3, output_padding=1),
        nn.ConvTranspose3d(4, 6, 2, 2, dilation=2),
        nn.ConvTranspose3d(4, 6, (1, 2, 2), (1, 2, 2)),
    ],
    ids=["overlapping", "padded", "grouped", "with gaps", "dilated", "unlike axes"],
)
def test_others_stay_as_they_are(layer: nn.Module) -> None:
    check_same(model_of(nn.Conv3d(1, 4, 1), layer), 0)


def test_a_sum_that_is_no_bias_stays_a_sum() -> None:
    class Shifted(nn.Module):
        """Adds a constant of every voxel's own."""

        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose3d(1, 3, 2, 2, bias=False)
            self.shift = nn.Parameter(torch.randn(1, 3, *(2 * size for size in ROI)))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            shifted: torch.Tensor = self.up(image) + self.shift
            return shifted

    check_same(model_of(Shifted()), 1)


def test_a_kept_layer_stays_by_its_onnx_name() -> None:
    layers = nn.Conv3d(1, 4, 1), nn.ConvTranspose3d(4, 6, 2, 2), nn.ConvTranspose3d(6, 3, 2, 2)
    model = model_of(*layers)
    onnx_model = export(nn.Sequential(*layers), ROI)
    names = [node.name for node in onnx_model.graph.node if node.op_type == "ConvTranspose"]
    changed = check_same(model, 1, kept=frozenset({names[0]}))
    assert names[0] in {operation.get_friendly_name() for operation in changed.get_ops()}
