"""The grid that a model sees: sizes, places and directions worked out by hand. Equality with MONAI is in the oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.monai_grids import model_grid
from tests.support.phantoms import affine_of, card_of
from voxtile.chains.monai.grid import Grid
from voxtile.chains.monai.resample import AxisMap

OBLIQUE = (14.0, -27.0, 33.0)
SHAPE = (10, 11, 12)
SPACING = (2.0, 1.5, 1.7)


def grid_for(affine: NDArray[np.float64], spacing: Any, shape: tuple[int, int, int] = SHAPE, codes: Any = None) -> Grid:
    return model_grid(affine, shape, card_of(orientation=codes, spacing=spacing))


def straight(*spacing: float) -> NDArray[np.float64]:
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = 5, -7, 11
    return affine


def place(affine: NDArray[np.float64], voxel: Any) -> NDArray[np.float64]:
    return np.asarray(affine[:3, :3] @ voxel + affine[:3, 3])


def test_sizes_maps_and_place_of_a_straight_grid() -> None:
    grid = grid_for(straight(*SPACING), (1.0, 3.0, 1.7))
    assert (grid.scan, grid.oriented, grid.shape) == (SHAPE, SHAPE, (19, 6, 12))  # 9·2 and 10·1.5/3 steps
    assert grid.voxels == 19 * 6 * 12
    assert grid.resampled
    expected = AxisMap(10, 19, 0.5, 0.0), AxisMap(11, 6, 2.0, 0.0), AxisMap(12, 12, 1.0, 0.0)
    for found, wanted in zip(grid.maps, expected, strict=True):
        assert (found.source, found.target) == (wanted.source, wanted.target)
        np.testing.assert_allclose((found.scale, found.offset), (wanted.scale, wanted.offset), atol=1e-12)
    np.testing.assert_allclose(grid.affine, straight(1.0, 3.0, 1.7), atol=1e-12)


@pytest.mark.parametrize(("size", "steps"), [(10, 6), (8, 4), (9, 5), (7, 4)])
def test_half_a_voxel_is_rounded_to_even_as_in_monai(size: int, steps: int) -> None:
    assert grid_for(straight(1.0, 1.0, 1.0), (1.0, 1.0, 2.0), (3, 4, size)).shape == (3, 4, steps)


@pytest.mark.parametrize("angles", [(0.0, 0.0, 0.0), OBLIQUE])
@pytest.mark.parametrize("codes", ["RAS", "LPS", "SAR", "PIL"])
def test_directions_and_the_first_voxel_are_kept(angles: tuple[float, float, float], codes: str) -> None:
    affine, target = affine_of(SHAPE, SPACING, codes, angles), np.array((1.1, 0.9, 3.0))
    grid = grid_for(affine, tuple(target))
    np.testing.assert_allclose(grid.affine[:3, :3], affine[:3, :3] / SPACING * target, atol=1e-12)
    np.testing.assert_allclose(grid.affine[:, 3], affine[:, 3], atol=1e-12)
    np.testing.assert_array_equal(grid.affine[3], (0, 0, 0, 1))


def test_axes_are_exchanged_and_turned_before_they_are_spaced() -> None:
    affine = affine_of(SHAPE, SPACING, "PIL", OBLIQUE)
    grid = grid_for(affine, (1.0, 3.0, 4.0), codes="RAS")
    assert (grid.scan, grid.oriented) == (SHAPE, (12, 10, 11))
    assert grid.shape == (20, 7, 5)  # steps: 11·1.7/1 = 18.7, 9·2/3 = 6, 10·1.5/4 = 3.75
    np.testing.assert_allclose(place(grid.affine, (0, 0, 0)), place(affine, (9, 10, 11)), atol=1e-12)
    assert (np.diag(grid.affine[:3, :3]) > 0).all()
    assert grid.orientation.axes == (2, 0, 1)


def test_without_an_orientation_or_a_spacing_the_scans_own_is_kept() -> None:
    affine = affine_of(SHAPE, SPACING, "PIL", OBLIQUE)
    grid = grid_for(affine, None)
    assert (grid.shape, grid.oriented, grid.resampled) == (SHAPE, SHAPE, False)
    np.testing.assert_array_equal(grid.affine, affine)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_spacing_counts_as_the_cards_up_to_a_thousandth(axis: int, sign: int) -> None:
    """Of a millimetre, and of itself."""
    share = 1 / SPACING[axis]
    near, far = ([value + sign * off * (a == axis) for a, value in enumerate(SPACING)] for off in (9e-4, 12e-4 / share))
    assert not grid_for(straight(*near), SPACING).resampled
    np.testing.assert_array_equal(grid_for(straight(*near), SPACING).affine, straight(*near))
    grid = grid_for(straight(*far), SPACING)
    assert [one.identity for one in grid.maps] == [a != axis for a in range(3)]
    assert grid.resampled


def test_a_near_spacing_is_kept_where_another_axis_is_resampled() -> None:
    found = grid_for(straight(2.0005, 1.5, 1.7), (2.0, 1.5, 3.4))
    assert found.maps[0].identity
    np.testing.assert_allclose(found.affine, straight(2.0005, 1.5, 3.4), atol=1e-12)


def test_a_skewed_grid_is_straightened() -> None:
    affine, target = affine_of(SHAPE, SPACING, "RAS", OBLIQUE, shear=0.2), np.array((1.0, 3.0, 0.85))
    grid = grid_for(affine, tuple(target))
    columns = grid.affine[:3, :3]
    np.testing.assert_allclose(columns.T @ columns, np.diag(target**2), atol=1e-12)
    np.testing.assert_allclose(columns[:, 0], affine[:3, 0] / 2, atol=1e-12)  # the first axis keeps its direction
    np.testing.assert_allclose(grid.affine[:3, 3], affine[:3, 3], atol=1e-12)
    assert grid.shape == (23, 6, 23)  # steps: 9·2 + 0.2·11·1.7 = 21.7, 10·1.5/3, 11·1.7/0.85 = 22


def test_where_rounding_hides_the_first_corner_the_middles_coincide() -> None:
    """A skew that float32 headers leave: MONAI straightens the axes, and no corner is the first along all of them."""
    affine = affine_of(SHAPE, SPACING, "RAS", OBLIQUE, shear=-5e-5)
    grid = grid_for(affine, (1.0, 3.0, 0.85))
    columns = grid.affine[:3, :3]
    np.testing.assert_allclose(columns.T @ columns, np.diag((1.0, 9.0, 0.85**2)), atol=1e-12)
    middles = place(grid.affine, np.array(grid.shape) / 2), place(affine, np.array(SHAPE) / 2)
    np.testing.assert_allclose(*middles, atol=1e-12)
    assert np.linalg.norm(grid.affine[:3, 3] - affine[:3, 3]) > 0.1
    voxel = np.array((4, 2, 9))
    there = np.linalg.solve(affine, [*place(grid.affine, voxel), 1.0])[:3]
    mapped = [one.scale * index + one.offset for one, index in zip(grid.maps, voxel, strict=True)]
    np.testing.assert_allclose(mapped, there, atol=1e-3)  # the skew itself, over twelve voxels
