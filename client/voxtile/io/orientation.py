"""The one type for another order and direction of a grid's axes: permutation and flips, and the way back.

Knows nothing of files or models. Codes are nibabel's: "RAS" means that the axes run to the Right, to the Anterior and
to the Superior. Affines map voxels to millimetres in RAS; DICOM, ITK and SimpleITK use LPS instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""[4, 4] from millimetres in LPS to RAS, and equally from RAS to LPS."""

WORLD = ("RL", "AP", "SI")
"""The letters of each axis of RAS, the positive direction first."""


def is_orientation(codes: str) -> bool:
    """Whether `codes` are three letters, one of each axis, such as "LAS"; in capitals or not."""
    found = [next((axis for axis, pair in enumerate(WORLD) if code in pair), 3) for code in codes.upper()]
    return sorted(found) == [0, 1, 2]


def oriented_affine(codes: str, spacing: Sequence[float]) -> NDArray[np.float64]:
    """Returns [4, 4] of a grid whose first voxel is at 0 and whose axes run along `codes`, in millimetres."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (code, step) in enumerate(zip(codes.upper(), spacing, strict=True)):
        world = next(number for number, pair in enumerate(WORLD) if code in pair)
        affine[world, axis] = step if code == WORLD[world][0] else -step
    return affine


@dataclass(frozen=True)
class Orientation:
    """How the axes of a target grid lie on those of a source grid.

    Attributes:
        axes: for each target axis, the source axis that lies along it.
        flipped: for each target axis, whether it runs against its source axis.
    """

    axes: tuple[int, int, int] = (0, 1, 2)
    flipped: tuple[bool, bool, bool] = (False, False, False)

    @classmethod
    def towards(cls, codes: str, affine: NDArray[np.float64]) -> Orientation:
        """Returns the orientation from a grid that `affine` [4, 4] places to axes along `codes`.

        An oblique source axis belongs to the direction of `codes` that it is nearest to.
        """
        from nibabel import orientations

        change = orientations.ornt_transform(orientations.io_orientation(affine), orientations.axcodes2ornt(codes))
        x, y, z = (int(axis) for axis in np.argsort(change[:, 0]))
        flips = change[:, 1] < 0
        return cls((x, y, z), (bool(flips[x]), bool(flips[y]), bool(flips[z])))

    @property
    def reversed(self) -> Orientation:
        """The same orientation with its target axes in reverse order: (z, y, x) instead of (x, y, z)."""
        return Orientation(self.axes[::-1], self.flipped[::-1])

    def apply(self, values: NDArray[Any]) -> NDArray[Any]:
        """Returns a view of `values` [..., *source axes] as [..., *target axes]."""
        lead = values.ndim - 3
        turned: NDArray[Any] = values.transpose(*range(lead), *(lead + axis for axis in self.axes))[self._flips]
        return turned

    def undo(self, values: NDArray[Any]) -> NDArray[Any]:
        """Returns a view of `values` [..., *target axes] as [..., *source axes]."""
        lead = values.ndim - 3
        straight: NDArray[Any] = values[self._flips]
        return straight.transpose(*range(lead), *(lead + self.axes.index(axis) for axis in range(3)))

    def reorder(self, per_axis: Sequence[Any]) -> tuple[Any, Any, Any]:
        """Returns `per_axis`, one item for each source axis (sizes, spacings), in the order of the target axes."""
        x, y, z = self.axes
        return per_axis[x], per_axis[y], per_axis[z]

    def apply_to_affine(self, affine: NDArray[np.float64], shape: Sequence[int]) -> NDArray[np.float64]:
        """Returns the affine [4, 4] of the target grid for a source grid of `shape` voxels that `affine` places."""
        turned: NDArray[np.float64] = affine @ self.matrix(shape)
        return turned

    def matrix(self, shape: Sequence[int]) -> NDArray[np.float64]:
        """Returns [4, 4] voxel of the target grid to voxel of a source grid of `shape` voxels."""
        from nibabel import orientations

        targets = [self.axes.index(axis) for axis in range(3)]
        change = [(target, -1 if self.flipped[target] else 1) for target in targets]
        matrix: NDArray[np.float64] = orientations.inv_ornt_aff(np.array(change), shape)
        return matrix

    @property
    def _flips(self) -> tuple[Any, ...]:
        return (..., *(slice(None, None, -1 if flip else 1) for flip in self.flipped))
