"""Label maps resampled as nnU-Net does, with the very function that it calls, and with torch's scores by definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from batchgenerators.augmentations.utils import resize_segmentation
from numpy.typing import NDArray
from scipy.ndimage import zoom

from voxtile.chains.nnunet.axis_zoom import AxisZoom
from voxtile.chains.nnunet.label_resampling import resample_labels, resample_labels_torch

SHAPES = [((7, 9, 11), (12, 6, 13)), ((6, 8, 5), (12, 16, 10)), ((8, 6, 10), (4, 3, 5)), ((5, 7, 6), (5, 11, 4))]
"""Any factors, exact doubles and halves, whose scores are often level, and an axis that stays."""


def blobs(shape: tuple[int, ...], channels: int = 2) -> NDArray[np.int16]:
    """Label maps [channel, z, y, x] of compact regions, -1 included, as a previous stage's segmentation has."""
    z, y, x = shape
    coarse = np.random.default_rng(0).integers(-1, 4, [channels, *(size // 2 + 1 for size in shape)])
    full = coarse.repeat(2, 1).repeat(2, 2).repeat(2, 3)
    return full[:, 1 : z + 1, 1 : y + 1, 1 : x + 1].astype(np.int16)  # so that borders lie on ties of exact halves


def in_plane_shape(seg: NDArray[Any], new_shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return tuple(seg.shape[1 + at] if at == axis else size for at, size in enumerate(new_shape))


def nnunets(seg: NDArray[Any], new_shape: tuple[int, ...], axis: int | None, order: int, order_z: int) -> NDArray[Any]:
    """What `resample_data_or_seg(is_seg=True)` does."""
    result = np.zeros((len(seg), *new_shape), seg.dtype)
    for volume, out in zip(seg.astype(float), result, strict=True):
        if axis is None:
            out[...] = resize_segmentation(volume, new_shape, order)
            continue
        in_plane = [size for at, size in enumerate(new_shape) if at != axis]
        planes = np.stack([resize_segmentation(plane, in_plane, order) for plane in np.moveaxis(volume, axis, 0)])
        goal, factors = np.moveaxis(out, axis, 0), (new_shape[axis] / len(planes), 1, 1)
        if order_z == 0 or factors[0] == 1:
            goal[...] = zoom(planes, factors, order=0, mode="nearest", grid_mode=True)
            continue
        for label in np.unique(planes):
            share = zoom((planes == label).astype(float), factors, order=order_z, mode="nearest", grid_mode=True)
            goal[np.round(share) > 0.5] = label
    return result


@pytest.mark.parametrize(("shape", "new_shape"), SHAPES)
@pytest.mark.parametrize("axis", [None, 0, 1, 2])
@pytest.mark.parametrize(("order", "order_z"), [(1, 0), (1, 1), (0, 0), (0, 1), (3, 0)])
def test_labels_are_nnunets(
    shape: tuple[int, ...], new_shape: tuple[int, ...], axis: int | None, order: int, order_z: int
) -> None:
    seg = blobs(shape)
    found = resample_labels(seg, new_shape, order=order, separate_z_axis=axis, order_z=order_z)
    np.testing.assert_array_equal(found, nnunets(seg, new_shape, axis, order, order_z))
    assert found.dtype == seg.dtype


@pytest.mark.parametrize(("shape", "new_shape"), SHAPES[:2])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_separate_axis_may_be_cubic(shape: tuple[int, ...], new_shape: tuple[int, ...], axis: int) -> None:
    """Without exact halves, where rounding decides which share exceeds one half."""
    seg = blobs(shape)
    found = resample_labels(seg, new_shape, order=1, separate_z_axis=axis, order_z=3)
    np.testing.assert_array_equal(found, nnunets(seg, new_shape, axis, 1, 3))


def linear(seg: NDArray[Any], voxels: int) -> NDArray[Any]:
    """The labels of a line of `voxels`."""
    return resample_labels(seg, (1, 1, voxels), order=1, separate_z_axis=None, order_z=0).ravel()


def test_a_tie_goes_to_the_nearest_voxels_label_else_to_the_lowest() -> None:
    line = np.array([2, 7, 4], np.int16).reshape(1, 1, 1, 3)
    np.testing.assert_array_equal(linear(line, 2), [2, 4])  # at 0.25 and 1.75
    pair = np.array([9, 9, 5, 5], np.int16).reshape(1, 1, 1, 4)
    np.testing.assert_array_equal(linear(pair, 1), [5])  # at 1.5, whose nearest is 2
    square = np.array([[3, 8], [1, 6]], np.int16).reshape(1, 1, 2, 2)
    assert linear(square, 1) == 6
    strip = np.array([1, 3, 3, 1, 2, 2], np.int16).reshape(1, 1, 2, 3)
    np.testing.assert_array_equal(linear(strip, 3), [1, 2, 2])


@pytest.mark.parametrize("axis", [None, 1])
def test_labels_of_the_same_shape_are_given_back(axis: int | None) -> None:
    seg, orders = blobs((4, 5, 6)), {"order": 1, "order_z": 0, "separate_z_axis": axis}
    assert resample_labels(seg, [4, 5, 6], **orders) is seg
    for efficient in (False, True):
        assert resample_labels_torch(seg, [4, 5, 6], **orders, memory_efficient=efficient) is seg


def interpolated(mask: NDArray[Any], new_shape: tuple[int, ...], order: int) -> NDArray[np.float32]:
    """[channel, z, y, x] `torch.nn.functional.interpolate` of 0 and 1, by the matrix of each axis."""
    values = mask.astype(float)
    for axis, (old, new) in enumerate(zip(mask.shape[1:], new_shape, strict=True), 1):
        one = AxisZoom(old, new, order, "torch", dtype=np.float64)
        matrix = np.zeros((new, old))
        matrix[:, one.support(0, new)] = one.block(0, new)
        values = np.moveaxis(np.tensordot(matrix, values, (1, axis)), 0, axis)
    return values.astype(np.float32)


def torchs(seg: NDArray[Any], new_shape: tuple[int, ...], order: int, efficient: bool) -> NDArray[Any]:
    """What `resample_torch_simple(is_seg=True)` does."""
    labels = np.unique(seg)
    scores = np.stack([interpolated(seg == label, new_shape, order) for label in labels])
    if not efficient:
        return np.asarray(labels[(scores * 1000).astype(np.float16).argmax(0)])
    result = np.zeros(scores.shape[1:], seg.dtype)
    for label, score in zip(labels, scores, strict=True):
        result[score > 0.5] = label
    return result


@pytest.mark.parametrize(("shape", "new_shape"), SHAPES)
@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("efficient", [False, True])
@pytest.mark.parametrize(("axis", "order_z"), [(None, 0), (0, 0), (1, 1), (2, 0), (2, 1)])
def test_torchs_labels_are_those_of_the_highest_rounded_score_or_over_half(
    shape: tuple[int, ...], new_shape: tuple[int, ...], order: int, efficient: bool, axis: int | None, order_z: int
) -> None:
    seg = blobs(shape)
    options = {"separate_z_axis": axis, "order": order, "order_z": order_z, "memory_efficient": efficient}
    found = resample_labels_torch(seg, new_shape, **options)
    if axis is None:
        expected = torchs(seg, new_shape, order, efficient)
    else:
        flat = torchs(seg, in_plane_shape(seg, new_shape, axis), order, efficient)
        expected = torchs(flat, new_shape, order_z, efficient)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == seg.dtype


def by_torch(seg: NDArray[Any], voxels: int, order: int) -> NDArray[Any]:
    options = {"separate_z_axis": None, "order_z": 0, "memory_efficient": False}
    return resample_labels_torch(seg, (1, 1, voxels), order=order, **options).ravel()


def test_torchs_scores_are_rounded_to_half_precision() -> None:
    """Between two voxels, both labels have equal scores within the rounding of 1000 · 0.5, and the lower label wins."""
    seg = np.array([7, 3], np.int16).reshape(1, 1, 1, 2)
    share = interpolated(seg == 7, (1, 1, 100_001), 1).ravel()
    above = (share * 1000).astype(np.float16) > ((1 - share) * 1000).astype(np.float16)
    found = by_torch(seg, 100_001, 1)
    np.testing.assert_array_equal(found, np.where(above, 7, 3))
    assert (found == 3).sum() > 50_001


def test_torchs_own_positions_decide() -> None:
    """24.5 · 20/490 is 1, but not in float64."""
    line = np.arange(20, dtype=np.int16).reshape(1, 1, 1, 20)
    assert by_torch(line, 490, 0)[24] == 1
    scipys = resample_labels(line, (1, 1, 490), order=0, separate_z_axis=None, order_z=0)
    assert scipys[0, 0, 0, 24] == 0
