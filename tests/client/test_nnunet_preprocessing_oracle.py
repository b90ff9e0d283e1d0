"""nnU-Net's preprocessing step by step; the chain with the export is in test_nnunet_exporting_oracle.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from acvl_utils.cropping_and_padding.bounding_boxes import get_bbox_from_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.preprocessing.cropping.cropping import create_nonzero_mask
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.preprocessing.resampling.default_resampling import (
    compute_new_shape as nnunet_new_shape,
)
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes

from tests.support.nnunet_plans import (
    bordered_scan,
    plan_json,
    resampling,
)
from voxtile.chains.nnunet.plan import NnunetPlan
from voxtile.chains.nnunet.preprocessing import (
    bounding_box,
    compute_new_shape,
    fill_holes,
    nonzero_mask,
    preprocess,
)

DATA_TOLERANCE = 1e-5
"""Of the range: order-3 resampling in float32 against nnU-Net's in float64."""

SCHEMES = [
    *("CTNormalization", "ZScoreNormalization", "NoNormalization"),
    *("RescaleTo01Normalization", "RGBTo01Normalization"),
]


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
    data = bordered_scan(channels=2).astype(dtype)
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
    ready, _, wanted = oracle(bordered_scan(), (2.5, 1.2, 0.9), plan)
    found = preprocess(bordered_scan(), (2.5, 1.2, 0.9), NnunetPlan.parse(plan)).properties
    assert found.original_shape == bordered_scan().shape[1:]
    assert found.shape_before_cropping == wanted["shape_before_cropping"]
    assert [list(span) for span in found.bbox] == [list(span) for span in wanted["bbox_used_for_cropping"]]
    assert found.shape_after_cropping == wanted["shape_after_cropping_and_before_resampling"]
    assert found.shape_after_resampling == ready.shape[1:]
    assert (found.spacing, found.target_spacing) == ((0.9, 2.5, 1.2), (0.7, 2.0, 1.1))


def test_two_dimensional_plan_keeps_the_slices() -> None:
    plan = plan_json(spacing=[0.8, 0.9], patch_size=[16, 16])
    expected, _, _ = oracle(bordered_scan(), (6.0, 1.0, 1.1), plan)
    found = preprocess(bordered_scan(), (6.0, 1.0, 1.1), NnunetPlan.parse(plan))
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
    data = bordered_scan()
    seg = np.random.default_rng(4).integers(0, 4, (5, 6, 7)).repeat(3, 0).repeat(3, 1).repeat(3, 2)[:13, :17, :21]
    image, wanted, _ = oracle(data, spacing, plan, seg[None].astype(np.float32))
    expected = np.vstack((image, convert_labelmap_to_one_hot(wanted[0], [1, 2, 3], image.dtype)))
    found = preprocess(data, spacing, NnunetPlan.parse(plan), previous_stage_seg=seg.astype(np.uint8))
    assert (found.data.shape, found.data.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_array_equal(found.data[1:], expected[1:])
    np.testing.assert_allclose(found.data[0], expected[0], atol=DATA_TOLERANCE * np.ptp(expected[0]))


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
