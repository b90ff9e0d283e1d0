"""Resampling in slabs: neither slabs, threads nor memory order matter. Equality is in the oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from voxtile.chains.nnunet.resampling import resample

SINGLE_TOLERANCE = 1e-6  # of the range: float32 sums of some thirty products


def noisy_ramp(shape: tuple[int, ...], channels: int = 2, seed: int = 0) -> NDArray[np.float32]:
    """Channels [channel, z, y, x] of noise on an asymmetric ramp, of quite different ranges."""
    noise = np.random.default_rng(seed).standard_normal((channels, *shape))
    ramp = np.arange(shape[0])[:, None, None] + 0.5 * np.arange(shape[2])
    ranges = np.array([1, 300])[:channels, None, None, None]
    return np.asarray((noise + ramp) * ranges, np.float32)


def relative_error(found: NDArray[Any], expected: NDArray[Any], data: NDArray[Any]) -> float:
    span = np.ptp(data, axis=(1, 2, 3), keepdims=True)
    return float((np.abs(found.astype(float) - expected) / span).max())


@pytest.mark.parametrize("axis", [None, 0, 2])
@pytest.mark.parametrize("max_bytes", [1, 10_000, 10**9])
@pytest.mark.parametrize("threads", [1, 3])
def test_slabs_and_threads_do_not_change_the_result(axis: int | None, max_bytes: int, threads: int) -> None:
    data = noisy_ramp((30, 21, 25))
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
    data = noisy_ramp((5, 6, 7))
    assert resample(data, (5, 6, 7)) is data


def test_views_of_any_memory_order_are_read() -> None:
    data = noisy_ramp((12, 9, 15))
    view = np.asfortranarray(data)[:, ::-1].transpose(0, 3, 1, 2)
    expected = resample(np.ascontiguousarray(view), (20, 20, 13), separate_z_axis=1)
    np.testing.assert_array_equal(resample(view, (20, 20, 13), separate_z_axis=1), expected)


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
