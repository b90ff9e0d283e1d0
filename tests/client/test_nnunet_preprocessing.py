"""nnU-Net's preprocessing step by step; the chain with the export is in test_nnunet_export.py."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from acvl_utils.cropping_and_padding.bounding_boxes import get_bbox_from_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.preprocessing.cropping.cropping import create_nonzero_mask
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape as nnunet_new_shape
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes

from voxtile.chains.nnunet.plan import NnunetPlan
from voxtile.chains.nnunet.preprocessing import (
    bounding_box,
    compute_new_shape,
    fill_holes,
    nonzero_mask,
    preprocess,
)
from voxtile.errors import InputError, ModelError

DATA_TOLERANCE = 1e-5
"""Of the range: order-3 resampling in float32 against nnU-Net's in float64."""
FIGURES = {"mean": 40.0, "std": 90.0, "percentile_00_5": 70.0, "percentile_99_5": 160.0}
SCHEMES = [
    *("CTNormalization", "ZScoreNormalization", "NoNormalization"),
    *("RescaleTo01Normalization", "RGBTo01Normalization"),
]


def resampling(order: int, *, is_seg: bool = False) -> dict[str, Any]:
    return {"is_seg": is_seg, "order": order, "order_z": 0, "force_separate_z": None}


def plan_json(**changes: Any) -> dict[str, Any]:
    """One configuration of a plans.json merged into its top level, as it travels in a model's card."""
    name = "resample_data_or_seg_to_shape"
    plan = {
        **{"transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2]},
        **{"spacing": [1.5, 1.0, 1.0], "patch_size": [16, 16, 16]},
        **{"normalization_schemes": ["ZScoreNormalization"], "use_mask_for_norm": [False]},
        "foreground_intensity_properties_per_channel": {str(c): FIGURES for c in range(5)},
        **{"resampling_fn_data": name, "resampling_fn_data_kwargs": resampling(3)},
        **{"resampling_fn_seg": name, "resampling_fn_seg_kwargs": resampling(1, is_seg=True)},
        **{"resampling_fn_probabilities": name, "resampling_fn_probabilities_kwargs": resampling(1)},
    }
    return plan | changes


def scan(shape: tuple[int, int, int] = (13, 17, 21), channels: int = 1) -> NDArray[np.float32]:
    """A case [channel, z, y, x] in 1 … 255 with an uneven zero border and a zero hole."""
    data = np.random.default_rng(2).integers(1, 256, (channels, *shape)).astype(np.float32)
    data[:, :3], data[:, :, -2:], data[..., :4], data[:, 6:8, 5:9, 7:9] = 0, 0, 0, 0
    return data


def oracle(
    data: NDArray[Any], spacing: Any, plan: dict[str, Any], seg: NDArray[Any] | None = None
) -> tuple[NDArray[Any], NDArray[Any], dict[str, Any]]:
    top = ("transpose_forward", "transpose_backward", "foreground_intensity_properties_per_channel")
    configuration = {**plan, "architecture": {}}
    manager = PlansManager({**{key: plan[key] for key in top}, "configurations": {"3d": configuration}})
    labels = {"labels": {"background": 0, "a": 1, "b": 2, "c": 3}}
    ready, seg_ready, properties = DefaultPreprocessor(verbose=False).run_case_npy(
        data, seg, {"spacing": list(spacing)}, manager, manager.get_configuration("3d"), labels
    )
    return ready, seg_ready, properties


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16, np.uint8])
def test_normalisation_is_bit_for_bit_nnunets(scheme: str, masked: bool, dtype: Any) -> None:
    plan = plan_json(
        normalization_schemes=[scheme] * 2,
        use_mask_for_norm=[masked, False],
        **{"transpose_forward": [1, 2, 0], "transpose_backward": [2, 0, 1], "spacing": [1.0, 1.0, 1.5]},
    )
    data = scan(channels=2).astype(dtype)
    expected, _, _ = oracle(data, (1.5, 1.0, 1.0), plan)
    found = preprocess(data, (1.5, 1.0, 1.0), NnunetPlan.parse(plan))
    np.testing.assert_array_equal(found.data, expected)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_constant_image_is_normalised_as_by_nnunet(scheme: str) -> None:
    plan, data = plan_json(normalization_schemes=[scheme]), np.full((1, 5, 6, 7), 9, np.float32)
    expected, _, _ = oracle(data, (1.5, 1.0, 1.0), plan)
    found = preprocess(data, (1.5, 1.0, 1.0), NnunetPlan.parse(plan))
    np.testing.assert_array_equal(found.data, expected)


def test_properties_are_nnunets() -> None:
    plan = plan_json(transpose_forward=[2, 0, 1], transpose_backward=[1, 2, 0], spacing=[0.7, 2.0, 1.1])
    ready, _, wanted = oracle(scan(), (2.5, 1.2, 0.9), plan)
    found = preprocess(scan(), (2.5, 1.2, 0.9), NnunetPlan.parse(plan)).properties
    assert found.original_shape == scan().shape[1:]
    assert found.shape_before_cropping == wanted["shape_before_cropping"]
    assert [list(span) for span in found.bbox] == [list(span) for span in wanted["bbox_used_for_cropping"]]
    assert found.shape_after_cropping == wanted["shape_after_cropping_and_before_resampling"]
    assert found.shape_after_resampling == ready.shape[1:]
    assert (found.spacing, found.target_spacing) == ((0.9, 2.5, 1.2), (0.7, 2.0, 1.1))


def test_two_dimensional_plan_keeps_the_slices() -> None:
    plan = plan_json(spacing=[0.8, 0.9], patch_size=[16, 16])
    expected, _, _ = oracle(scan(), (6.0, 1.0, 1.1), plan)
    found = preprocess(scan(), (6.0, 1.0, 1.1), NnunetPlan.parse(plan))
    assert found.data.shape == expected.shape
    assert found.properties.target_spacing == (6.0, 0.8, 0.9)
    np.testing.assert_allclose(found.data, expected, atol=DATA_TOLERANCE * np.ptp(expected))


@pytest.mark.parametrize("order_z", [0, 1])
@pytest.mark.parametrize("spacing", [(1.5, 1.0, 1.0), (2.0, 1.3, 1.2), (6.0, 1.3, 1.2)])
@pytest.mark.parametrize("masked", [False, True])
def test_previous_stage_becomes_channels(spacing: Any, masked: bool, order_z: int) -> None:
    plan = plan_json(
        use_mask_for_norm=[masked],
        foreground_labels=[1, 2, 3],
        resampling_fn_seg_kwargs=resampling(1, is_seg=True) | {"order_z": order_z},
    )
    data = scan()
    seg = np.random.default_rng(4).integers(0, 4, (5, 6, 7)).repeat(3, 0).repeat(3, 1).repeat(3, 2)[:13, :17, :21]
    image, wanted, _ = oracle(data, spacing, plan, seg[None].astype(np.float32))
    expected = np.vstack((image, convert_labelmap_to_one_hot(wanted[0], [1, 2, 3], image.dtype)))
    found = preprocess(data, spacing, NnunetPlan.parse(plan), previous_stage_seg=seg.astype(np.uint8))
    assert (found.data.shape, found.data.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_array_equal(found.data[1:], expected[1:])
    np.testing.assert_allclose(found.data[0], expected[0], atol=DATA_TOLERANCE * np.ptp(expected[0]))


def test_scan_of_zeros_is_not_cropped() -> None:
    found = preprocess(np.zeros((1, 5, 6, 7)), (1.5, 1.0, 1.0), NnunetPlan.parse(plan_json()))
    assert found.properties.bbox == ((0, 5), (0, 6), (0, 7))
    assert not found.data.any()


@given(seed=st.integers(0, 10**6), share=st.floats(0.0, 0.8), shape=st.tuples(*[st.integers(1, 9)] * 3))
@settings(max_examples=80, deadline=None)
def test_mask_holes_and_box_equal_nnunets(seed: int, share: float, shape: tuple[int, int, int]) -> None:
    data = (np.random.default_rng(seed).random((2, *shape)) < share / 2).astype(np.float32)
    mask = nonzero_mask(data)
    filled = create_nonzero_mask(data)
    np.testing.assert_array_equal(fill_holes(mask), filled)
    np.testing.assert_array_equal(fill_holes(mask), binary_fill_holes(mask))
    assert [list(span) for span in bounding_box(mask)] == [list(span) for span in get_bbox_from_mask(filled)]


@given(
    sizes=st.tuples(*[st.integers(1, 600)] * 3),
    old=st.tuples(*[st.floats(0.2, 8)] * 3),
    new=st.tuples(*[st.floats(0.2, 8)] * 3),
)
def test_new_shape_is_nnunets(sizes: Any, old: Any, new: Any) -> None:
    assert compute_new_shape(sizes, old, new) == tuple(nnunet_new_shape(sizes, old, new))


def test_plan_survives_json() -> None:
    plan = plan_json(foreground_labels=[1, 2])
    assert NnunetPlan.parse(json.loads(json.dumps(plan))) == NnunetPlan.parse(plan)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalization_schemes": ["MyNormalization"]}, "MyNormalization"),
        ({"resampling_fn_data": "my_resampling"}, "my_resampling"),
        ({"use_mask_for_norm": [False, True]}, "expected 1 entries, one a channel, found 2"),
        ({"transpose_forward": [0, 1, 1]}, "transpose_forward: expected an order of the axes 0, 1, 2"),
        ({"spacing": [1.0]}, "spacing: .*at least 2 items"),
        ({"spacing": [1.0, -1.0, 1.0]}, r"spacing\.1: .*greater than 0, found -1.0"),
        (
            {
                "normalization_schemes": ["CTNormalization"],
                "foreground_intensity_properties_per_channel": {"0": {"mean": 3}},
            },
            "missing: std, percentile_00_5, percentile_99_5",
        ),
    ],
)
def test_plan_that_is_not_understood_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        NnunetPlan.parse(plan_json(**changes))


@pytest.mark.parametrize("key", [key for key in plan_json() if not key.endswith("kwargs")])
def test_missing_key_is_named(key: str) -> None:
    plan = plan_json()
    del plan[key]
    with pytest.raises(ModelError, match=key):
        NnunetPlan.parse(plan)


@pytest.mark.parametrize(
    ("data", "spacing", "message"),
    [
        (np.zeros((2, 4, 4, 4)), (1, 1, 1), "expected 1 images of a scan.*got 2"),
        (np.zeros((4, 4, 4)), (1, 1, 1), "shape"),
        (np.zeros((1, 0, 4, 4)), (1, 1, 1), "shape"),
        (np.zeros((1, 4, 4, 4)), (1, 0, 1), "positive spacings"),
        (np.zeros((1, 4, 4, 4)), (1, 1, float("nan")), "positive spacings"),
    ],
)
def test_case_that_does_not_fit_is_refused(data: NDArray[Any], spacing: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        preprocess(data, spacing, NnunetPlan.parse(plan_json()))


@pytest.mark.parametrize("value", [-1, 256])
def test_intensities_that_are_not_rgb_are_refused(value: int) -> None:
    data = scan()
    data[0, 5, 5, 5] = value
    plan = plan_json(normalization_schemes=["RGBTo01Normalization"])
    with pytest.raises(InputError, match="0 … 255"):
        preprocess(data, (1, 1, 1), NnunetPlan.parse(plan))


def test_previous_stage_of_another_shape_is_refused() -> None:
    plan = NnunetPlan.parse(plan_json(foreground_labels=[1]))
    with pytest.raises(InputError, match="previous stage"):
        preprocess(scan(), (1, 1, 1), plan, previous_stage_seg=np.zeros((2, 2, 2), np.uint8))


def test_previous_stage_needs_the_labels() -> None:
    with pytest.raises(ModelError, match="foreground_labels"):
        preprocess(
            scan(),
            (1, 1, 1),
            NnunetPlan.parse(plan_json()),
            previous_stage_seg=np.zeros(scan().shape[1:], np.uint8),
        )


def test_neither_torch_nor_nnunet_nor_scipy_is_imported() -> None:
    code = (
        "import sys, voxtile.chains.nnunet.prepared_scan; "
        "print({'torch', 'nnunetv2', 'scipy', 'skimage'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
