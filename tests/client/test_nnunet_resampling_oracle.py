"""Resampling of scans and label maps against nnU-Net's own functions, and torch's."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.preprocessing.resampling.default_resampling import (
    determine_do_sep_z_and_axis,
    resample_data_or_seg,
    resample_data_or_seg_to_shape,
)
from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_fornnunet
from numpy.typing import NDArray

from voxtile.chains.nnunet.resampling import resample
from voxtile.chains.nnunet.resampling_rules import ResamplingRule

SINGLE_TOLERANCE = 1e-6  # of the range: float32 sums of some thirty products

SHAPES = [
    ((11, 20, 17), (19, 26, 30)),
    ((20, 26, 30), (9, 11, 21)),
    ((5, 20, 17), (5, 31, 25)),
    ((6, 14, 13), (15, 14, 13)),
    ((4, 1, 8), (7, 1, 20)),
]


def noisy_ramp(shape: tuple[int, ...], channels: int = 2, seed: int = 0) -> NDArray[np.float32]:
    """Channels [channel, z, y, x] of noise on an asymmetric ramp, of quite different ranges."""
    noise = np.random.default_rng(seed).standard_normal((channels, *shape))
    ramp = np.arange(shape[0])[:, None, None] + 0.5 * np.arange(shape[2])
    ranges = np.array([1, 300])[:channels, None, None, None]
    return np.asarray((noise + ramp) * ranges, np.float32)


def blobs(shape: tuple[int, ...], labels: int, seed: int = 0) -> NDArray[np.float32]:
    """A label map [1, z, y, x] with compact regions, -1 included, as a previous stage's segmentation has."""
    coarse = np.random.default_rng(seed).integers(-1, labels, [-(-size // 3) for size in shape])
    full = coarse.repeat(3, 0).repeat(3, 1).repeat(3, 2)[: shape[0], : shape[1], : shape[2]]
    return full[None].astype(np.float32)


def relative_error(found: NDArray[Any], expected: NDArray[Any], data: NDArray[Any]) -> float:
    span = np.ptp(data, axis=(1, 2, 3), keepdims=True)
    return float((np.abs(found.astype(float) - expected) / span).max())


@pytest.mark.parametrize(("shape", "new_shape"), SHAPES)
@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize("axis", [None, 0, 1, 2])
@pytest.mark.parametrize("order_z", [0, 1, 3])
def test_resample_equals_nnunet(
    shape: tuple[int, ...], new_shape: tuple[int, ...], order: int, axis: int | None, order_z: int
) -> None:
    data = noisy_ramp(shape)
    expected = resample_data_or_seg(data, new_shape, False, axis, order, axis is not None, order_z)
    found = resample(data, new_shape, order=order, separate_z_axis=axis, order_z=order_z)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    assert relative_error(found, expected, data) < SINGLE_TOLERANCE


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_dtype_is_kept(dtype: Any) -> None:
    data = noisy_ramp((9, 10, 11), 1).astype(dtype)
    expected = resample_data_or_seg(data, (14, 12, 8), False, None, 3, False, 0)
    found = resample(data, (14, 12, 8))
    assert found.dtype == expected.dtype == dtype
    step = 2.0**-10 if dtype == np.float16 else 1e-12
    assert relative_error(found, expected.astype(float), data.astype(float)) < step


def test_work_memory_is_a_quarter_of_nnunets() -> None:
    data, new_shape = noisy_ramp((96, 96, 96), 1), (150, 150, 150)
    peaks = []
    for work in (
        lambda: resample(data, new_shape, max_bytes=2**20, threads=2),
        lambda: resample_data_or_seg(data, new_shape, False, None, 3, False, 0),
    ):
        tracemalloc.start()
        out = work()
        peaks.append(tracemalloc.get_traced_memory()[1] - out.nbytes)
        tracemalloc.stop()
    assert peaks[0] <= peaks[1] / 4


@pytest.mark.parametrize(("shape", "new_shape"), [*SHAPES, ((12, 12, 12), (6, 6, 6)), ((6, 6, 6), (12, 12, 12))])
@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("order_z", [0, 1])
def test_labels_equal_nnunet(
    shape: tuple[int, ...], new_shape: tuple[int, ...], axis: int | None, order_z: int
) -> None:
    seg = blobs(shape, 4)
    spacing = [1.0, 1.0, 1.0]
    if axis is not None:
        spacing[axis] = 5.0
    kwargs = {"is_seg": True, "order": 1, "order_z": order_z, "force_separate_z": None}
    rule = ResamplingRule.from_plan("resample_data_or_seg_to_shape", kwargs, "resampling_fn_seg", is_seg=True)
    found = rule.apply_to_labels(seg, new_shape, spacing, spacing)
    expected = resample_data_or_seg_to_shape(seg, new_shape, spacing, spacing, **kwargs)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("shape", "new_shape"), SHAPES)
@pytest.mark.parametrize("spacing", [(1, 1, 1), (5, 1, 1), (1, 1, 6)])
@pytest.mark.parametrize("kwargs", [{}, {"mode": "nearest-exact", "aniso_axis_mode": "linear"}])
def test_torch_function_is_reproduced(shape: Any, new_shape: Any, spacing: Any, kwargs: dict[str, str]) -> None:
    data = noisy_ramp(shape)
    rule = ResamplingRule.from_plan("resample_torch_fornnunet", {**kwargs, "num_threads": 8}, "fn")
    found = rule.apply(data, new_shape, spacing, (1, 1, 1))
    expected = resample_torch_fornnunet(data.copy(), new_shape, spacing, (1, 1, 1), num_threads=1, **kwargs)
    assert relative_error(found, expected, data) < SINGLE_TOLERANCE


@pytest.mark.parametrize("spacing", [(1, 1, 1), (5, 1, 1)])
@pytest.mark.parametrize("economical", [False, True])
def test_torch_labels_are_reproduced(spacing: Any, economical: bool) -> None:
    seg = blobs((7, 14, 15), 4)
    kwargs = {"is_seg": True, "memefficient_seg_resampling": economical}
    rule = ResamplingRule.from_plan("resample_torch_fornnunet", kwargs, "fn", is_seg=True)
    found = rule.apply_to_labels(seg, (11, 24, 19), spacing, (1, 1, 1))
    expected = resample_torch_fornnunet(seg.copy(), (11, 24, 19), spacing, (1, 1, 1), num_threads=1, **kwargs)
    assert (found != expected).mean() < 1e-3  # ties: torch's argmax names any of the equal ones


@given(
    current=st.tuples(*[st.sampled_from([0.5, 1.0, 1.6, 3.0, 5.0])] * 3),
    new=st.tuples(*[st.sampled_from([0.5, 1.0, 1.6, 3.0, 5.0])] * 3),
    force=st.sampled_from([None, True, False]),
    threshold=st.sampled_from([3, 5]),
)
@settings(deadline=None)
def test_separate_axis_is_chosen_as_nnunet_does(current: Any, new: Any, force: bool | None, threshold: int) -> None:
    kwargs = {"force_separate_z": force, "separate_z_anisotropy_threshold": threshold}
    rule = ResamplingRule.from_plan("resample_data_or_seg_to_shape", kwargs, "fn")
    separate, axis = determine_do_sep_z_and_axis(force, current, new, threshold)
    assert rule.separate_axis(current, new) == (axis if separate else None)


def test_torch_coordinates_of_long_axes() -> None:
    line = np.random.default_rng(1).standard_normal((1, 1, 1, 997)).astype(np.float32)
    found = resample(line, (1, 1, 1723), order=0, rule="torch")
    expected = torch.nn.functional.interpolate(torch.from_numpy(line[None]), (1, 1, 1723), mode="nearest-exact")
    np.testing.assert_array_equal(found, expected[0].numpy())
