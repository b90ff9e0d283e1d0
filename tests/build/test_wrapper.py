"""The wrapper normalises as MONAI does, pads in normalised space, and returns the scores that were asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.networks.nets import BasicUNetPlusPlus
from monai.transforms import NormalizeIntensity, ScaleIntensityRange, ScaleIntensityRangePercentiles

from tests.support.build_specs import ROI, Linear, spec
from voxtile_build.errors import NetworkError
from voxtile_build.graph.wrapper import Wrapper, example_inputs, wrap
from voxtile_build.spec.input import PADDING

TORCH = {"fp32": torch.float32, "fp16": torch.float16, "int16": torch.int16}
LABELS = {"labels": ["value"]}


def scan(low: float = -900, high: float = 1500, channels: int = 1) -> torch.Tensor:
    """Whole numbers [1, channel, *ROI], float32, no two halves alike."""
    values = torch.from_numpy(np.random.default_rng(3).integers(int(low), int(high), (1, channels, *ROI)))
    return values.to(torch.float32)


def identity(**changes: Any) -> Wrapper:
    """The wrapper around a network that gives its input back, so that its output is the normalised ROI."""
    channels = len(changes.get("input", {}).get("channels", ["T1"]))
    changes.setdefault("output", {"labels": [f"c{index}" for index in range(channels)]})
    return Wrapper(torch.nn.Identity(), spec(**changes)).eval()


def of_scan(values: torch.Tensor, subtract: float, divide: float) -> torch.Tensor:
    return torch.tensor([[[subtract, divide]]] * len(values))


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int16"])
def test_rule_none_gives_whole_numbers_back_exactly(dtype: str) -> None:
    values = scan()
    wrapper = identity(input={"dtype": dtype})
    assert torch.equal(wrapper(values.to(TORCH[dtype])), values)


@pytest.mark.parametrize("clip", [True, False])
def test_rule_range_is_monais(clip: bool) -> None:
    rule = {"rule": "range", "a_min": -175.0, "a_max": 250.0, "b_min": -1.0, "b_max": 2.0, "clip": clip}
    found = identity(input={"intensity": rule})(scan())
    expected = ScaleIntensityRange(-175.0, 250.0, -1.0, 2.0, clip=clip)(scan())
    assert torch.equal(found, torch.as_tensor(expected))


def test_rule_fixed_clips_and_scales_each_channel_with_its_own_statistics() -> None:
    rule: dict[str, Any] = {
        "rule": "fixed",
        "mean": [100.0, -5.0],
        "std": [50.0, 2.0],
        "lower": [-100.0, -9.0],
        "upper": [300.0, 9.0],
    }
    values = scan(channels=2)
    found = identity(input={"channels": ["CT", "PET"], "intensity": rule})(values).numpy()
    for channel in (0, 1):
        low, high, mean, std = (rule[key][channel] for key in ("lower", "upper", "mean", "std"))
        expected = (np.clip(values[0, channel].numpy(), low, high) - np.float32(mean)) / np.float32(std)
        np.testing.assert_array_equal(found[0, channel], expected)


def test_rule_fixed_without_bounds_does_not_clip() -> None:
    found = identity(input={"intensity": {"rule": "fixed", "mean": [0.0], "std": [2.0]}})(scan())
    assert torch.equal(found, scan() / 2)


def test_rule_zscore_with_the_scans_statistics_is_monais() -> None:
    values = scan()
    mean, std = float(values.mean()), float(values.std(correction=0))
    found = identity(input={"intensity": {"rule": "zscore"}})(values, of_scan(values, mean, std))
    expected = torch.as_tensor(NormalizeIntensity()(values[0]))
    torch.testing.assert_close(found[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("clip", [True, False])
def test_rule_percentile_with_the_scans_statistics_is_monais(clip: bool) -> None:
    values = scan()
    low, high = np.percentile(values.numpy(), (2, 95))
    rule = {"rule": "percentile", "lower": 2.0, "upper": 95.0, "clip": clip}
    found = identity(input={"intensity": rule})(values, of_scan(values, low, high - low))
    expected = torch.as_tensor(ScaleIntensityRangePercentiles(2, 95, 0.0, 1.0, clip=clip)(values[0]))
    torch.testing.assert_close(found[0], expected, rtol=1e-5, atol=1e-6)


def test_each_scan_of_a_batch_has_its_own_statistics() -> None:
    values = scan().repeat(2, 1, 1, 1, 1)
    statistics = torch.tensor([[[10.0, 2.0]], [[-3.0, 4.0]]])
    found = identity(input={"intensity": {"rule": "zscore"}})(values, statistics)
    assert torch.equal(found[0], (values[0] - 10) / 2)
    assert torch.equal(found[1], (values[1] + 3) / 4)


def test_a_scan_of_one_value_gives_zeros_not_nan() -> None:
    values = torch.full((1, 1, *ROI), 7.0)
    found = identity(input={"intensity": {"rule": "zscore"}})(values, of_scan(values, 7.0, 0.0))
    assert torch.equal(found, torch.zeros_like(values))


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int16"])
@pytest.mark.parametrize(
    "rule",
    [
        {"rule": "none"},
        {"rule": "range", "a_min": -175.0, "a_max": 250.0, "b_min": -1.0},
        {"rule": "fixed", "mean": [100.0], "std": [50.0], "lower": [-100.0], "upper": [300.0]},
        {"rule": "zscore"},
        {"rule": "percentile", "lower": 1.0, "upper": 99.0, "clip": True},
    ],
    ids=lambda rule: rule["rule"],
)
def test_padding_is_zero_after_normalisation_and_touches_nothing_else(dtype: str, rule: dict[str, Any]) -> None:
    wrapper = identity(input={"dtype": dtype, "intensity": rule})
    values = scan().to(TORCH[dtype])
    statistics = (of_scan(values, 20.0, 3.0),) if rule["rule"] in ("zscore", "percentile") else ()
    plain = wrapper(values, *statistics)
    padded = values.clone()
    padded[..., :3] = PADDING[dtype]
    found = wrapper(padded, *statistics)
    assert torch.equal(found[..., :3], torch.zeros_like(found[..., :3]))
    assert torch.equal(found[..., 3:], plain[..., 3:])


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int16"])
def test_padding_is_the_lowest_value_of_its_type(dtype: str) -> None:
    kind = TORCH[dtype]
    lowest = torch.iinfo(kind).min if dtype == "int16" else torch.finfo(kind).min
    assert lowest == PADDING[dtype]


FACTORS = (0.01, -0.02, 0.03)


def finished(**output: Any) -> torch.Tensor:
    result: torch.Tensor = Wrapper(Linear(FACTORS), spec(output=output)).eval()(scan(-300, 300))
    return result


def logits() -> torch.Tensor:
    return scan(-300, 300) * torch.tensor(FACTORS).reshape(1, 3, 1, 1, 1)


def test_logits_are_the_networks_own() -> None:
    assert torch.equal(finished(), logits())
    assert torch.equal(finished(dtype="fp16"), logits().half())


def test_probabilities_are_a_softmax_and_sum_to_one() -> None:
    found = finished(scores="probabilities")
    torch.testing.assert_close(found, logits().softmax(dim=1))
    torch.testing.assert_close(found.sum(dim=1), torch.ones(1, *ROI))


def test_regions_get_a_sigmoid_each() -> None:
    torch.testing.assert_close(finished(scores="probabilities", regions=True), logits().sigmoid())


def test_foreground_is_the_one_class_asked_for() -> None:
    found = finished(scores="foreground", foreground="two", dtype="fp16")
    assert found.dtype == torch.float16
    torch.testing.assert_close(found, logits().softmax(dim=1)[:, 2:3].half())


def test_uint8_is_rounded_not_cut() -> None:
    found = finished(scores="probabilities", dtype="uint8")
    assert found.dtype == torch.uint8
    error = found.float() / 255 - logits().softmax(dim=1)
    assert float(error.abs().max()) <= 0.5 / 255 + 1e-6
    assert int(found.max()) == 255


def test_labels_are_the_largest_class() -> None:
    found = finished(scores="labels", dtype="uint8")
    assert found.dtype == torch.uint8
    assert torch.equal(found[:, 0].long(), logits().argmax(dim=1))


def test_the_same_roi_gives_the_same_bytes() -> None:
    assert finished(scores="probabilities").numpy().tobytes() == finished(scores="probabilities").numpy().tobytes()


def test_two_dimensional_rois_work_alike() -> None:
    rule = {"rule": "fixed", "mean": [100.0], "std": [50.0]}
    flat = spec(
        input={"intensity": rule},
        output=LABELS,
        tiling={"roi_size": [6, 5], "slice_axis": 2},
        network={"name": "Identity"},
    )
    values = torch.arange(30.0).reshape(1, 1, 6, 5)
    assert torch.equal(Wrapper(torch.nn.Identity(), flat)(values), (values - 100) / 50)


@pytest.mark.parametrize("rule", ["none", "zscore"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int16"])
def test_example_inputs_fit_the_wrapper(dtype: str, rule: str) -> None:
    chosen = spec(input={"dtype": dtype, "intensity": {"rule": rule}})
    inputs = example_inputs(chosen, 3)
    assert len(inputs) == (2 if rule == "zscore" else 1)
    assert Wrapper(Linear(FACTORS), chosen)(*inputs).shape == (3, 3, *ROI)


def test_a_list_of_one_output_is_taken() -> None:
    torch.manual_seed(0)
    network = BasicUNetPlusPlus(3, 1, 3, features=(4, 4, 4, 4, 4, 4)).eval()
    wrapper = wrap(network, spec(tiling={"roi_size": [32, 32, 32]}))
    assert wrapper(torch.zeros(1, 1, 32, 32, 32)).shape == (1, 3, 32, 32, 32)


def test_deep_supervision_is_refused() -> None:
    network = BasicUNetPlusPlus(3, 1, 3, features=(4, 4, 4, 4, 4, 4), deep_supervision=True).eval()
    with pytest.raises(NetworkError, match=r"found 4; .*switch deep supervision off"):
        wrap(network, spec(tiling={"roi_size": [32, 32, 32]}))


def test_a_label_count_that_is_not_the_networks_is_refused() -> None:
    with pytest.raises(NetworkError, match=r"output.labels: expected .*\[1, 2, 16, 8, 12\].*found \[1, 3, 16, 8, 12\]"):
        wrap(Linear(FACTORS), spec(output={"labels": ["background", "one"]}))


def test_a_roi_that_the_network_refuses_is_named() -> None:
    with pytest.raises(NetworkError, match=r"inferer.roi_size: the network refuses a ROI of \[16, 8, 12\]"):
        wrap(torch.nn.Conv3d(1, 3, 9), spec())


@pytest.mark.parametrize("rule", [{"rule": "none"}, {"rule": "range", "a_min": -32767.0, "a_max": 0.0}])
def test_every_int16_value_but_the_lowest_is_a_voxel(rule: dict[str, Any]) -> None:
    values = torch.tensor([-32768, -32767, -32766, -32000, -31000, 0, 32767], dtype=torch.int16)
    asked = spec(input={"intensity": rule, "dtype": "int16"}, tiling={"cval": 7.5})
    image = Wrapper(Linear(FACTORS), asked).image(values.reshape(1, 1, 7, 1, 1)).flatten()
    assert [index for index, value in enumerate(image) if value == 7.5] == [0]
