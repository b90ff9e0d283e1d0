"""Linear resampling by taps against the definition, and against itself in other memory orders."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from voxtile.chains.monai import resample as resampling
from voxtile.chains.monai.resample import AxisMap, blend, blend_axes, resample

FLOAT32_ROUNDING = 3e-6
"""Relative: three blends in float32, each of a few units in the last place."""


def naive(source: NDArray[np.float64], maps: tuple[AxisMap, AxisMap, AxisMap]) -> NDArray[np.float64]:
    """[X, Y, Z] trilinear interpolation of [x, y, z], voxel by voxel, straight from its definition."""
    result = np.zeros([axis.target for axis in maps])
    for index in np.ndindex(*result.shape):
        place = [min(max(m.scale * i + m.offset, 0), m.source - 1) for m, i in zip(maps, index, strict=True)]
        for corner in itertools.product((0, 1), repeat=3):
            at = [min(int(p) + c, m.source - 1) for p, c, m in zip(place, corner, maps, strict=True)]
            weight = np.prod([p - int(p) if c else 1 - (p - int(p)) for p, c in zip(place, corner, strict=True)])
            result[index] += weight * source[tuple(at)]
    return result


MAPS = (AxisMap(9, 14, 0.61, 0.0), AxisMap(11, 5, 2.3, -0.4), AxisMap(8, 8, 1.0, 0.0))

axis_maps = st.builds(
    AxisMap,
    source=st.integers(1, 9),
    target=st.integers(1, 9),
    scale=st.floats(0.1, 4),
    offset=st.floats(-2, 3),
)


@given(st.tuples(axis_maps, axis_maps, axis_maps), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_it_is_trilinear_interpolation_with_the_border_repeated(
    maps: tuple[AxisMap, AxisMap, AxisMap], seed: int
) -> None:
    source = np.random.default_rng(seed).normal(0, 100, [axis.source for axis in maps])
    found = resample(source[None], maps, threads=1)[0]
    np.testing.assert_allclose(found, naive(source, maps), atol=1000 * FLOAT32_ROUNDING)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_every_stored_type_gives_the_same_values(dtype: type[np.generic]) -> None:
    source = np.random.default_rng(1).integers(0, 200, (1, 9, 11, 8))
    found = resample(source.astype(dtype), MAPS)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, resample(source.astype(np.float32), MAPS))


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (1, -1, -1), (-1, -1, -1)])
def test_memory_order_and_direction_do_not_matter(order: tuple[int, ...], flips: tuple[int, ...]) -> None:
    source = np.random.default_rng(2).normal(0, 100, (2, 9, 11, 8)).astype(np.float32)
    step = (slice(None), *(slice(None, None, flip) for flip in flips))
    other = np.ascontiguousarray(source[step].transpose(0, *(axis + 1 for axis in order)))
    view = other.transpose(0, *(order.index(axis) + 1 for axis in range(3)))[step]
    np.testing.assert_array_equal(view, source)
    np.testing.assert_allclose(resample(view, MAPS), resample(source, MAPS), atol=1000 * FLOAT32_ROUNDING)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("slab", [1, 3000, 1 << 22])
def test_slabs_and_threads_do_not_matter(threads: int, slab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    source = np.random.default_rng(3).normal(0, 100, (2, 9, 11, 8)).astype(np.float32)
    whole = blend_axes(source, [None if axis.identity else axis.taps for axis in MAPS])
    monkeypatch.setattr(resampling, "SLAB_BYTES", slab)
    np.testing.assert_allclose(resample(source, MAPS, threads), whole, atol=1000 * FLOAT32_ROUNDING)


def test_a_straight_ramp_stays_straight() -> None:
    ramp = np.arange(20, dtype=np.float32)
    axis = AxisMap(20, 33, 0.5, 1.0)
    expected = np.minimum(0.5 * np.arange(33) + 1, 19)
    np.testing.assert_allclose(blend(ramp, 0, axis.taps), expected, rtol=FLOAT32_ROUNDING)


def test_going_and_coming_back_meets_every_voxel_that_both_grids_share() -> None:
    axis = AxisMap(7, 13, 0.5, 0.0)
    values = np.random.default_rng(4).normal(0, 1, (5, 7)).astype(np.float32)
    finer = blend(values, 1, axis.taps)
    np.testing.assert_array_equal(finer[:, ::2], values)
    np.testing.assert_array_equal(blend(finer, 1, axis.inverse.taps), values)


@given(axis_maps)
def test_inverse_and_mirror_are_their_own_inverses(axis: AxisMap) -> None:
    for twice in (axis.inverse.inverse, axis.mirrored.mirrored):
        assert (twice.source, twice.target) == (axis.source, axis.target)
        np.testing.assert_allclose((twice.scale, twice.offset), (axis.scale, axis.offset), rtol=1e-9, atol=1e-9)


@given(axis_maps)
def test_taps_stay_inside_and_shares_between_zero_and_one(axis: AxisMap) -> None:
    taps = axis.taps
    assert taps.low.min() >= 0
    assert taps.high.max() < axis.source
    assert ((taps.high - taps.low) <= 1).all()
    assert taps.weight.min() >= 0
    assert taps.weight.max() <= 1
    assert (np.diff(taps.low) >= 0).all()


def test_identity_is_told_from_a_shift() -> None:
    assert AxisMap(5, 5, 1.0, 0.0).identity
    assert AxisMap(500, 500, 1 + 1e-8, 1e-6).identity
    assert not AxisMap(5, 5, 1.0, 0.01).identity
    assert not AxisMap(500, 500, 1.001, 0.0).identity
    assert not AxisMap(5, 6, 1.0, 0.0).identity
