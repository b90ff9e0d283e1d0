"""One axis of a grid on another: coordinates, taps and unchanged axes, in figures worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from voxtile.chains.monai.resample import AxisMap, Taps, blend

ROUNDING = 1e-14
"""Of MONAI's float64 arithmetic, in voxels."""


def test_coordinates_lie_on_a_line_and_stay_inside() -> None:
    np.testing.assert_allclose(AxisMap(5, 6, 1.5, -2.0).coordinates, [0, 0, 1, 2.5, 4, 4], atol=ROUNDING)


@pytest.mark.parametrize("miss", [9e-7, -9e-7])
def test_coordinates_that_miss_a_whole_number_by_rounding_are_made_whole(miss: float) -> None:
    np.testing.assert_array_equal(AxisMap(9, 4, 2.0, 1 + miss).coordinates, [1, 3, 5, 7])
    np.testing.assert_allclose(AxisMap(9, 4, 2.0, 1 + miss).places, 1 + miss + 2 * np.arange(4), atol=ROUNDING)
    missed = AxisMap(9, 4, 2.0, 1 + 2 * miss).coordinates
    np.testing.assert_allclose(missed, 1 + 2 * miss + 2 * np.arange(4), atol=ROUNDING)


def test_taps_are_the_two_neighbours_and_the_share_of_the_higher_one() -> None:
    taps = AxisMap(4, 6, 0.75, -0.25).taps  # at -0.25, 0.5, 1.25, 2, 2.75, 3.5
    np.testing.assert_array_equal(taps.low, [0, 0, 1, 2, 2, 3])
    np.testing.assert_array_equal(taps.high, [1, 1, 2, 3, 3, 3])
    np.testing.assert_array_equal(taps.weight, [0, 0.5, 0.25, 0, 0.75, 0])
    assert (taps.low.dtype, taps.high.dtype, taps.weight.dtype) == (np.intp, np.intp, np.float32)


def test_the_nearest_voxel_of_a_half_is_the_even_one() -> None:
    nearest = AxisMap(5, 9, 0.5, 0.0).nearest
    np.testing.assert_array_equal(nearest, [0, 0, 1, 2, 2, 2, 3, 4, 4])
    assert nearest.dtype == np.intp


def test_taps_of_some_voxels_count_from_the_lowest_that_they_read() -> None:
    taps = AxisMap(9, 5, 1.75, 0.5).taps  # at 0.5, 2.25, 4, 5.75, 7.5
    assert taps.span(1, 4) == slice(2, 7)
    assert taps.span(4, 5) == slice(7, 9)
    part = taps.part(1, 4)
    np.testing.assert_array_equal(part.low, [0, 2, 3])
    np.testing.assert_array_equal(part.high, [1, 3, 4])
    np.testing.assert_array_equal(part.weight, [0.25, 0, 0.75])


def test_the_way_back_and_the_mirror_image() -> None:
    axis = AxisMap(9, 14, 0.5, 1.5)
    assert axis.inverse == AxisMap(14, 9, 2.0, -3.0)
    assert axis.mirrored == AxisMap(9, 14, 0.5, 1.5, mirror=True)
    from_behind = AxisMap(9, 14, 0.5, 0.0)  # the last voxel, at 0.5·13 + 1.5 = 8, is the first from behind
    np.testing.assert_allclose(axis.mirrored.coordinates, from_behind.coordinates, atol=ROUNDING)
    assert axis.mirrored.mirrored == axis


def test_the_way_back_is_the_one_that_was_given() -> None:
    axis = AxisMap(9, 14, 0.5, 1.5, undo=(2.5, 0.25))
    assert axis.inverse == AxisMap(14, 9, 2.5, 0.25)
    assert axis.mirrored.inverse == AxisMap(14, 9, 2.5, 0.25, mirror=True)
    assert axis.inverse.inverse == axis


def test_a_half_is_even_before_the_axes_are_flipped() -> None:
    axis = AxisMap(9, 6, 1.5, 0.0)  # at 0, 1.5, 3, 4.5, 6, 7.5, but for rounding
    assert set(axis.nearest.tolist()) <= {0, 1, 2, 3, 4, 5, 6, 7, 8}
    np.testing.assert_array_equal(axis.mirrored.nearest, 8 - axis.nearest[::-1])


@pytest.mark.parametrize(
    ("scale", "offset", "expected"),
    [
        (1.0, 0.9e-4, True),
        (1.0, -0.9e-4, True),
        (1.0, 1.1e-4, False),
        (1.0, -1.1e-4, False),
        (1 + 0.9e-5, 0.0, True),  # the last of eleven voxels is off by ten times as much
        (1 - 0.9e-5, 0.0, True),
        (1 + 1.05e-5, 0.0, False),
        (1 - 1.05e-5, 0.0, False),
        (1 + 1.5e-5, -0.8e-4, True),
        (1 - 1.5e-5, 0.8e-4, True),
        (1 - 1.5e-5, -0.8e-4, False),
    ],
)
def test_an_axis_is_unchanged_where_its_first_and_last_voxel_are(scale: float, offset: float, expected: bool) -> None:
    assert AxisMap(11, 11, scale, offset).identity is expected
    assert not AxisMap(12, 11, scale, offset).identity


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32, np.float64])
def test_an_axis_is_blended_in_float32_whatever_is_stored(axis: int, dtype: type[np.generic]) -> None:
    shape = [3, 4, 5]
    shape[axis] = 2
    values = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    taps = Taps(np.array([0, 0, 1]), np.array([1, 1, 1]), np.array([0, 0.25, 0], np.float32))
    found = blend(values, axis, taps)
    first, second = values.take([0], axis), values.take([1], axis)
    np.testing.assert_array_equal(found, np.concatenate([first, first * 0.75 + second * 0.25, second], axis))
    assert (found.dtype, found.flags.c_contiguous) == (np.float32, True)
