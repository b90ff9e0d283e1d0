"""The grid that a model sees, and how it lies on the scan's own: axes exchanged and flipped, then spaced anew.

The geometry is that of MONAI 1.6 (`Orientation`, `Spacing(diagonal=False, align_corners=False)`,
`monai.data.utils.zoom_affine` and `compute_shape_offset`), computed in the same order, because a size that falls on a
half is rounded by its last bits. A skewed grid (gantry tilt) is straightened.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from voxtile.chains.monai.placing import Matrix, Placement, Triple, product
from voxtile.chains.monai.resample import AxisMap
from voxtile.io.geometry import spacing_of
from voxtile.io.orientation import Orientation

SAME_SPACING = 1e-3
"""Millimetres by which a spacing may differ from the card's, and steps by which an affine may differ from another, that
are still left as they are (MONAI's AFFINE_TOL)."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Maps the model's grid to the scan's.

    Attributes:
        scan: voxels of the scan along i, j, k.
        orientation: from the scan's axes to the model's.
        maps: for each axis of the model, from its voxels to those of the oriented scan.
        affine: [4, 4] voxel of the model's grid to RAS millimetres.
    """

    scan: tuple[int, int, int]
    orientation: Orientation
    maps: tuple[AxisMap, AxisMap, AxisMap]
    affine: Matrix

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels of the model's grid along x, y, z."""
        x, y, z = (axis.target for axis in self.maps)
        return x, y, z

    @property
    def oriented(self) -> tuple[int, int, int]:
        """Voxels of the scan along the model's axes."""
        x, y, z = (axis.source for axis in self.maps)
        return x, y, z

    @property
    def resampled(self) -> bool:
        """Whether the model's voxels lie anywhere but on the scan's."""
        return not all(axis.identity for axis in self.maps)

    @property
    def voxels(self) -> int:
        """The number of voxels of the model's grid."""
        return math.prod(self.shape)


@dataclass(frozen=True, eq=False)
class Respacing:
    """A grid with another spacing over a grid.

    Attributes:
        source: voxels of the grid along each axis.
        target: voxels of the other.
        affine: [4, 4] voxel of the grid to RAS millimetres.
        onto: [4, 4] voxel of the other to voxel of the grid.
    """

    source: Triple
    target: Triple
    affine: Matrix
    onto: Matrix

    @property
    def spaced(self) -> Matrix:
        """[4, 4] voxel of the other grid to RAS millimetres, as MONAI keeps it."""
        return product(self.affine, self.onto)

    @property
    def there(self) -> Placement:
        """Where the voxels of the other grid lie on the grid."""
        return Placement.of(self.onto, self.source, self.target)

    def back(self, spaced: Matrix) -> Matrix:
        """Returns [4, 4] voxel of the grid to voxel of the other, if `spaced` has since become that one's affine."""
        onto = np.asarray(np.linalg.solve(spaced, self.affine), np.float64)
        return np.eye(4) if _unchanged(spaced, self.target, self.affine, self.source, onto) else onto

    def maps(self, spaced: Matrix) -> tuple[AxisMap, AxisMap, AxisMap]:
        """Returns the map of each axis, whose way back is `back`."""
        onto, back = self.onto, self.back(spaced)
        x, y, z = (
            AxisMap(self.source[a], self.target[a], float(onto[a, a]), float(onto[a, 3]), (back[a, a], back[a, 3]))
            for a in range(3)
        )
        return x, y, z


def unchanged_axes(shape: Triple) -> tuple[AxisMap, AxisMap, AxisMap]:
    """Returns the maps of a grid onto itself."""
    x, y, z = (AxisMap(size, size, 1.0, 0.0) for size in shape)
    return x, y, z


def respaced(affine: Matrix, shape: Triple, wanted: tuple[float, float, float]) -> Respacing | None:
    """Returns a grid with another spacing; None where MONAI leaves a grid as it is.

    Args:
        affine: [4, 4] voxel of the grid to RAS millimetres.
        shape: its voxels along each axis.
        wanted: millimetres between the new voxels.
    """
    found = spacing_of(affine)
    target = np.where(np.abs(found - wanted) <= SAME_SPACING, found, wanted)
    spaced = _directed(affine, target)
    size, spaced[:3, 3] = _extent(affine, spaced, shape)
    onto = np.asarray(np.linalg.solve(affine, spaced), np.float64)
    x, y, z = (int(count) for count in size)
    if _unchanged(affine, shape, spaced, (x, y, z), onto):
        return None
    return Respacing(shape, (x, y, z), affine, onto)


def _unchanged(affine: Matrix, shape: Triple, other: Matrix, size: Triple, onto: Matrix) -> bool:
    """Whether MONAI takes two grids for the same, and does not resample."""
    same = np.allclose(affine, other, atol=SAME_SPACING) or np.allclose(onto, np.eye(4), atol=SAME_SPACING)
    return shape == size and same


def _directed(affine: Matrix, target: Matrix) -> Matrix:
    """Returns the affine with columns of length `target`, at right angles and at the origin (MONAI's `zoom_affine`)."""
    result = np.eye(4)
    columns = affine[:3, :3]
    stretch = np.linalg.cholesky(columns.T @ columns).T
    rotation = columns @ np.linalg.inv(stretch)
    result[:3, :3] = rotation @ np.diag(target)
    return result


def _extent(affine: Matrix, spaced: Matrix, shape: tuple[int, int, int]) -> tuple[Matrix, Matrix]:
    """Returns voxels along each axis, and the origin, of the grid `spaced` over the scan.

    As in MONAI's `compute_shape_offset`, the first voxels of both grids coincide. Where rounding in the header hides
    which corner is the first, the middles of both grids coincide instead.
    """
    size = np.array(shape)
    corners = np.asarray(np.meshgrid(*[(0.0, n - 1.0) for n in size], indexing="ij")).reshape(3, 8)
    corners = np.concatenate((corners, np.ones_like(corners[:1])))
    seen = (np.linalg.solve(spaced, affine) @ corners)[:-1]
    count = np.round(np.ptp(seen, axis=1) + 1.0)
    # MONAI tries every corner, but the directions of both grids agree, so that no other than voxel 0 can be the first.
    if np.isclose((seen - seen[:, :1]).min(), 0.0):
        return count, affine[:3, 3]
    middle = affine[:3, :3] @ (size / 2.0) + affine[:3, 3] - spaced[:3, :3] @ (count / 2.0)
    return count, middle
