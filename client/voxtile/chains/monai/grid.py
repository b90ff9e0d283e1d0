"""How the grid that a model sees lies in the scan's own: axes exchanged and flipped, then spaced anew.

The geometry is that of MONAI 1.6 (`Orientation`, `Spacing(diagonal=False, align_corners=False)`,
`monai.data.utils.zoom_affine` and `compute_shape_offset`), computed in the same order, because a size that falls on a
half is rounded by its last bits. One difference: a skewed grid (gantry tilt) keeps its skew, where MONAI would
straighten it by a resampling that no longer falls apart into axes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.card import Card
from voxtile.chains.monai.resample import AxisMap
from voxtile.io.volume import spacing_of

SAME_SPACING = 1e-3
"""Millimetres by which a spacing may miss the card's and is left as it is (MONAI's AFFINE_TOL)."""

SKEW = 1e-4
"""Cosine between two axes above which a grid counts as skewed; float32 headers are wrong by less."""


@dataclass(frozen=True, eq=False)
class Grid:
    """The prepared grid in the scan's.

    scan: voxels of the scan along i, j, k. axes: the scan's axis behind each prepared one. flipped: whether the
    prepared axis runs against it. maps: from the oriented scan's voxels to the prepared ones, per prepared axis.
    affine: [4, 4] prepared voxel to RAS millimetres.
    """

    scan: tuple[int, int, int]
    axes: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]
    maps: tuple[AxisMap, AxisMap, AxisMap]
    affine: NDArray[np.float64]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels of the prepared grid."""
        x, y, z = (axis.target for axis in self.maps)
        return x, y, z

    @property
    def oriented(self) -> tuple[int, int, int]:
        """Voxels of the scan, its axes in the prepared order."""
        x, y, z = (axis.source for axis in self.maps)
        return x, y, z

    @property
    def resampled(self) -> bool:
        return not all(axis.identity for axis in self.maps)

    @property
    def voxels(self) -> int:
        return math.prod(self.shape)

    def orient(self, values: NDArray[Any]) -> NDArray[Any]:
        """[..., i, j, k] of the scan as [..., x, y, z] in the prepared order; a view."""
        lead = tuple(range(values.ndim - 3))
        turned: NDArray[Any] = values.transpose(*lead, *(len(lead) + axis for axis in self.axes))[self._flips]
        return turned

    def unorient(self, values: NDArray[Any]) -> NDArray[Any]:
        """[..., x, y, z] on the oriented scan as [..., i, j, k] of the scan itself; a view."""
        lead = tuple(range(values.ndim - 3))
        straight: NDArray[Any] = values[self._flips]
        return straight.transpose(*lead, *(len(lead) + self.axes.index(axis) for axis in range(3)))

    @property
    def _flips(self) -> tuple[Any, ...]:
        return (..., *(slice(None, None, -1 if flip else 1) for flip in self.flipped))


def plan_grid(affine: NDArray[np.float64], shape: tuple[int, int, int], card: Card) -> Grid:
    """The grid that `card` asks for of a scan of `shape` voxels that `affine` places (voxel to RAS millimetres)."""
    axes, flipped, oriented = _orientation(affine, shape, card.orientation)
    size = (shape[axes[0]], shape[axes[1]], shape[axes[2]])
    maps, prepared = _spacing(oriented, size, card.spacing)
    return Grid(shape, axes, flipped, maps, prepared)


def skewed(affine: NDArray[np.float64]) -> bool:
    """Whether the axes of a grid do not stand at right angles."""
    unit = affine[:3, :3] / spacing_of(affine)
    cosines: NDArray[np.float64] = np.abs(unit.T @ unit - np.eye(3))
    return bool(cosines.max() > SKEW)


def _orientation(
    affine: NDArray[np.float64], shape: tuple[int, int, int], codes: str | None
) -> tuple[tuple[int, int, int], tuple[bool, bool, bool], NDArray[np.float64]]:
    """The scan's axis behind each new one (the nearest, if oblique), whether it is flipped, and the affine then."""
    from nibabel import orientations

    if codes is None:
        return (0, 1, 2), (False, False, False), affine
    change = orientations.ornt_transform(orientations.io_orientation(affine), orientations.axcodes2ornt(codes))
    x, y, z = np.argsort(change[:, 0]).tolist()
    flips = change[:, 1] < 0
    turned = affine @ orientations.inv_ornt_aff(change, shape)
    return (x, y, z), (bool(flips[x]), bool(flips[y]), bool(flips[z])), turned


def _spacing(
    affine: NDArray[np.float64], shape: tuple[int, int, int], wanted: tuple[float, float, float] | None
) -> tuple[tuple[AxisMap, AxisMap, AxisMap], NDArray[np.float64]]:
    """The map of each axis and the new affine."""
    found = spacing_of(affine)
    target = found if wanted is None else np.where(np.abs(found - wanted) <= SAME_SPACING, found, wanted)
    if np.array_equal(target, found):
        x, y, z = (AxisMap(size, size, 1.0, 0.0) for size in shape)
        return (x, y, z), affine
    spaced = _respaced(affine, target)
    size, spaced[:3, 3] = _extent(affine, spaced, shape)
    onto = np.linalg.solve(affine, spaced)
    x, y, z = (AxisMap(shape[a], int(size[a]), float(onto[a, a]), float(onto[a, 3])) for a in range(3))
    return (x, y, z), spaced


def _respaced(affine: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """The affine with columns of length `target`, at the origin (MONAI's `zoom_affine`, but a skew is kept)."""
    result = np.eye(4)
    columns = affine[:3, :3]
    if skewed(affine):
        result[:3, :3] = columns / spacing_of(affine) * target
        return result
    stretch = np.linalg.cholesky(columns.T @ columns).T
    rotation = columns @ np.linalg.inv(stretch)
    result[:3, :3] = rotation @ np.diag(np.sign(np.diag(stretch)) * np.abs(target))
    return result


def _extent(
    affine: NDArray[np.float64], spaced: NDArray[np.float64], shape: tuple[int, int, int]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Voxels along each axis, and the origin, of the grid `spaced` over the scan (MONAI's `compute_shape_offset`).

    The first voxels of both grids coincide, unless rounding in the header hides which corner is the first: then the
    middles do.
    """
    size = np.array(shape, float)
    corners = np.asarray(np.meshgrid(*[(0.0, n - 1.0) for n in size], indexing="ij")).reshape((3, -1))
    corners = np.concatenate((corners, np.ones_like(corners[:1])))
    seen = (np.linalg.solve(spaced, affine) @ corners)[:-1]
    count = np.round(np.ptp(seen, axis=1) + 1.0)
    places = (affine @ corners)[:3]
    for corner in range(corners.shape[1]):
        if np.allclose(np.min(seen - seen[:, corner : corner + 1], 1), 0.0):
            return count.astype(np.int64), places[:, corner]
    middle = affine[:3, :3] @ (size / 2.0) + affine[:3, 3] - spaced[:3, :3] @ (count / 2.0)
    return count.astype(np.int64), middle
