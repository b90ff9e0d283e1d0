"""nnU-Net's resampling by matrices against scipy, scikit-image, torch and nnU-Net's own functions."""

from __future__ import annotations

import itertools
import threading
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
from scipy.ndimage import zoom
from threadpoolctl import threadpool_info

from voxtile.chains.nnunet.axis_zoom import AxisZoom
from voxtile.chains.nnunet.resampling import resample
from voxtile.chains.nnunet.resampling_rules import ResamplingRule
from voxtile.chains.nnunet.threads import run_all, single_threaded_blas
from voxtile.errors import ModelError

MATRIX_TOLERANCE = 1e-12  # scipy's recursive filter and the closed form differ by float64's rounding only
SINGLE_TOLERANCE = 1e-6  # of the range: float32 sums of some thirty products
SHAPES = [
    ((11, 20, 17), (19, 26, 30)),
    ((20, 26, 30), (9, 11, 21)),
    ((5, 20, 17), (5, 31, 25)),
    ((6, 14, 13), (15, 14, 13)),
    ((4, 1, 8), (7, 1, 20)),
]


def scan(shape: tuple[int, ...], channels: int = 2, seed: int = 0) -> NDArray[np.float32]:
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


def matrix(axis: AxisZoom) -> NDArray[np.float64]:
    """The whole matrix [n_out, n_in] of a zoom in float64."""
    whole = np.zeros((axis.n_out, axis.n_in))
    whole[:, axis.support(0, axis.n_out)] = axis.block(0, axis.n_out)
    return whole


def zoom_matrix(n_in: int, n_out: int, order: int) -> NDArray[np.float64]:
    """That of `skimage.transform.resize(mode="edge", anti_aliasing=False)` along one axis."""
    return matrix(AxisZoom(n_in, n_out, order, dtype=np.float64))


def relative_error(found: NDArray[Any], expected: NDArray[Any], data: NDArray[Any]) -> float:
    span = np.ptp(data, axis=(1, 2, 3), keepdims=True)
    return float((np.abs(found.astype(float) - expected) / span).max())


@pytest.mark.parametrize("order", [0, 1, 3])
def test_matrix_is_scipys_zoom_of_the_identity(order: int) -> None:
    sizes = [1, 2, 3, 4, 5, 7, 12, 17, 33, 64]
    for n_in, n_out in itertools.product(sizes, [1, 2, 3, 5, 8, 9, 13, 17, 50, 77]):
        expected = zoom(np.eye(n_in), (n_out / n_in, 1), order=order, mode="nearest", grid_mode=True)
        np.testing.assert_allclose(zoom_matrix(n_in, n_out, order), expected, atol=MATRIX_TOLERANCE)


@given(n_in=st.integers(1, 700), n_out=st.integers(1, 700), order=st.sampled_from([0, 1, 3]))
@settings(max_examples=40, deadline=None)
def test_matrix_keeps_constants(n_in: int, n_out: int, order: int) -> None:
    np.testing.assert_allclose(zoom_matrix(n_in, n_out, order).sum(1), 1, atol=MATRIX_TOLERANCE)


@given(n_in=st.integers(1, 300), n_out=st.integers(2, 300), order=st.sampled_from([0, 1, 3]), data=st.data())
@settings(max_examples=40, deadline=None)
def test_block_of_rows_is_a_part_of_the_matrix(n_in: int, n_out: int, order: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, n_out - 1))
    stop = data.draw(st.integers(start + 1, n_out))
    axis = AxisZoom(n_in, n_out, order, dtype=np.float64)
    embedded = np.zeros((stop - start, n_in))
    embedded[:, axis.support(start, stop)] = axis.block(start, stop)
    np.testing.assert_array_equal(embedded, matrix(axis)[start:stop])


@pytest.mark.parametrize(("shape", "new_shape"), SHAPES)
@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize("axis", [None, 0, 1, 2])
@pytest.mark.parametrize("order_z", [0, 1, 3])
def test_resample_equals_nnunet(
    shape: tuple[int, ...], new_shape: tuple[int, ...], order: int, axis: int | None, order_z: int
) -> None:
    data = scan(shape)
    expected = resample_data_or_seg(data, new_shape, False, axis, order, axis is not None, order_z)
    found = resample(data, new_shape, order=order, separate_z_axis=axis, order_z=order_z)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    assert relative_error(found, expected, data) < SINGLE_TOLERANCE


@pytest.mark.parametrize("axis", [None, 0, 2])
@pytest.mark.parametrize("max_bytes", [1, 10_000, 10**9])
@pytest.mark.parametrize("threads", [1, 3])
def test_slabs_and_threads_do_not_change_the_result(axis: int | None, max_bytes: int, threads: int) -> None:
    data = scan((30, 21, 25))
    whole = resample(data.astype(np.float64), (47, 33, 28), separate_z_axis=axis, order_z=1)
    parts = resample(data, (47, 33, 28), separate_z_axis=axis, order_z=1, max_bytes=max_bytes, threads=threads)
    assert relative_error(parts, whole, data) < SINGLE_TOLERANCE


def test_cubic_is_clipped_to_the_range_of_each_channel() -> None:
    step = np.zeros((2, 8, 8, 8), np.float32)
    step[:, 4:], step[1] = 1, step[1] * 100
    found = resample(step, (20, 20, 20))
    assert found.min() == 0
    assert [channel.max() for channel in found] == [1, 0]


def test_same_shape_is_returned_as_it_is() -> None:
    data = scan((5, 6, 7))
    assert resample(data, (5, 6, 7)) is data


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_dtype_is_kept(dtype: Any) -> None:
    data = scan((9, 10, 11), 1).astype(dtype)
    expected = resample_data_or_seg(data, (14, 12, 8), False, None, 3, False, 0)
    found = resample(data, (14, 12, 8))
    assert found.dtype == expected.dtype == dtype
    step = 2.0**-10 if dtype == np.float16 else 1e-12
    assert relative_error(found, expected.astype(float), data.astype(float)) < step


def test_views_of_any_memory_order_are_read() -> None:
    data = scan((12, 9, 15))
    view = np.asfortranarray(data)[:, ::-1].transpose(0, 3, 1, 2)
    expected = resample(np.ascontiguousarray(view), (20, 20, 13), separate_z_axis=1)
    np.testing.assert_array_equal(resample(view, (20, 20, 13), separate_z_axis=1), expected)


def test_work_memory_is_a_quarter_of_nnunets() -> None:
    data, new_shape = scan((96, 96, 96), 1), (150, 150, 150)
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
    data = scan(shape)
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


def test_no_resampling_leaves_the_data() -> None:
    data = scan((4, 5, 6))
    rule = ResamplingRule.from_plan("no_resampling_hack", {}, "fn")
    assert rule.apply(data, (8, 9, 9), (1, 1, 1), (2, 2, 2)) is data


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("my_own_function", {}, "my_own_function"),
        ("resample_torch_simple", {}, "resample_torch_simple"),
        ("resample_data_or_seg_to_shape", {"order": 2}, r"resampling_fn_data_kwargs\.order: .*0, 1 or 3, found 2"),
        ("resample_data_or_seg_to_shape", {"sigma_scale": 2}, "takes no argument named 'sigma_scale'"),
        ("resample_data_or_seg_to_shape", {"is_seg": True}, "is_seg"),
        ("resample_torch_fornnunet", {"mode": "area"}, "area"),
    ],
)
def test_unknown_functions_and_arguments_are_refused_by_name(name: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        ResamplingRule.from_plan(name, kwargs, "resampling_fn_data")


@pytest.mark.parametrize(
    ("data", "new_shape", "kwargs"),
    [
        (np.zeros((3, 3, 3)), (4, 4, 4), {}),
        (np.zeros((1, 3, 3, 3)), (4, 4), {}),
        (np.zeros((1, 3, 3, 3)), (4, 4, 4), {"order": 2}),
        (np.zeros((1, 3, 3, 3)), (4, 4, 4), {"separate_z_axis": 3}),
        (np.zeros((1, 3, 3, 3)), (4, 0, 4), {}),
    ],
)
def test_bad_arguments_are_refused(data: Any, new_shape: Any, kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        resample(data, new_shape, **kwargs)


def blas_threads() -> list[int]:
    return [int(pool["num_threads"]) for pool in threadpool_info() if pool["user_api"] == "blas"]


def test_blas_limit_is_lifted_by_the_last_who_holds_it() -> None:
    before = blas_threads()
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with single_threaded_blas():
            entered.set()
            leave.wait(10)

    other = threading.Thread(target=hold)
    with single_threaded_blas():
        other.start()
        assert entered.wait(10)
    assert set(blas_threads()) == {1}
    leave.set()
    other.join()
    assert blas_threads() == before


def test_run_all_keeps_order_and_raises() -> None:
    assert run_all(lambda x: x * x, range(5), 3) == [0, 1, 4, 9, 16]
    with pytest.raises(ZeroDivisionError):
        run_all(lambda x: 1 // x, [1, 0], 2)


def test_torch_coordinates_of_long_axes() -> None:
    line = np.random.default_rng(1).standard_normal((1, 1, 1, 997)).astype(np.float32)
    found = resample(line, (1, 1, 1723), order=0, rule="torch")
    expected = torch.nn.functional.interpolate(torch.from_numpy(line[None]), (1, 1, 1723), mode="nearest-exact")
    np.testing.assert_array_equal(found, expected[0].numpy())
