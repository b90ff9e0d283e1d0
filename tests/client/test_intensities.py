"""What a scan looks like in a few numbers: its body's, whatever its background, size and normalisation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from voxtile.io.intensities import MOST_VOXELS, input_statistics, most_frequent, thinned


def body(shape: tuple[int, ...] = (20, 24, 28), seed: int = 1) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(300, 40, shape)


def test_they_are_numpys_of_the_values_without_the_background() -> None:
    scan, air = body(), np.zeros((1, 30, 24, 28))
    air[0, 5:25] = scan
    [found] = input_statistics(air, None)
    assert found.mean == pytest.approx(scan.mean())
    assert found.std == pytest.approx(scan.std())
    assert [found.p1, found.p99] == pytest.approx(np.percentile(scan, (1, 99)).tolist())


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 40), st.sampled_from([0.0, -1000.0, 7.5]))
def test_how_much_air_there_is_changes_nothing(extent: int, value: float) -> None:
    """Air that is more than a few planes; fewer than 3 % might be tissue."""
    scan = body()
    padded = np.pad(scan, ((extent + 1, extent), (0, 0), (0, 0)), constant_values=value)
    [found], [expected] = input_statistics(padded[None], None), input_statistics(scan[None], None)
    assert found.model_dump() == pytest.approx(expected.model_dump())


def test_a_scan_without_a_background_keeps_all_its_values() -> None:
    whole = np.arange(6000, dtype=np.int16).reshape(1, 10, 20, 30)
    [found] = input_statistics(whole, None)
    assert (found.mean, found.std) == pytest.approx((whole.mean(), whole.std()))
    assert most_frequent(whole) is None


def test_a_scan_of_one_value_has_figures_too() -> None:
    [found] = input_statistics(np.full((1, 3, 3, 3), 5, np.int16), None)
    assert found.model_dump() == {"mean": 5, "std": 0, "p1": 5, "p99": 5}


def test_each_channel_is_normalised_by_its_own_figures() -> None:
    scan = np.stack([body(), 7 * body(seed=2) - 90])
    normalise = np.array([[channel.mean(), channel.std()] for channel in scan], np.float32)
    for found in input_statistics(scan, normalise):
        assert (found.mean, found.std) == pytest.approx((0, 1), abs=1e-5)


@pytest.mark.parametrize("scale", [0.01, 1.0, 32.0])
def test_another_scale_of_what_is_sent_changes_nothing_where_its_statistics_have_it_too(scale: float) -> None:
    scan, normalise = body()[None], np.array([[280.0, 44.0]])
    [found] = input_statistics(scan * scale, normalise * scale)
    [expected] = input_statistics(scan, normalise)
    assert found.model_dump() == pytest.approx(expected.model_dump())


@pytest.mark.parametrize("dtype", [np.int16, np.float16, np.float32])
def test_types_lose_only_their_rounding(dtype: Any) -> None:
    [found], [expected] = input_statistics(body()[None].astype(dtype), None), input_statistics(body()[None], None)
    assert found.model_dump() == pytest.approx(expected.model_dump(), abs=0.6)


@settings(deadline=None, max_examples=20)
@given(st.tuples(st.integers(1, 2), st.integers(1, 150), st.integers(1, 150), st.integers(1, 150)))
def test_of_a_large_scan_few_voxels_are_looked_at_in_every_corner(shape: tuple[int, int, int, int]) -> None:
    few = thinned(np.broadcast_to(np.int8(0), shape))
    assert few.shape[0] == shape[0]
    assert min(few.shape) >= 1
    # A side that is no multiple of the step has one voxel more.
    step = -(-shape[1] // few.shape[1])
    assert math.prod(side - 1 for side in few.shape[1:]) <= MOST_VOXELS
    assert all((side - 1) // step * step + step >= side for side in few.shape[1:])
    if math.prod(shape[1:]) <= MOST_VOXELS:
        assert few.shape == shape


def test_thinning_hardly_changes_the_figures() -> None:
    scan = body((90, 100, 110))[None]
    assert thinned(scan).size < scan.size / 4
    [few], [all_of_it] = input_statistics(thinned(scan), None), input_statistics(scan, None)
    assert few.model_dump() == pytest.approx(all_of_it.model_dump(), abs=1.5)
