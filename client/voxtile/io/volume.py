"""A scan as it is stored: voxels, where they lie in the patient, and the header that a mask has to repeat.

Knows nothing of models or files' bytes. Coordinates are NIfTI's: millimetres, x to the Right, y to the Anterior,
z to the Superior (RAS).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Volume:
    """One scan on its own grid.

    data: [channel, i, j, k], the values that the file stands for (its slope and intercept applied), in the smallest
        type that holds them exactly: 8 and 16 bit integers as stored, wider ones as int16 or int32 where they fit,
        everything else float32. Usually a view with i running fastest in memory, as NIfTI stores it.
    affine: [4, 4] float64, voxel (i, j, k) to RAS millimetres.
    header: the NIfTI-1 or NIfTI-2 header (nibabel) of the first file, whose geometry fields a mask repeats.
    names: what to call each channel's source in messages.
    """

    data: NDArray[Any]
    affine: NDArray[np.float64]
    header: Any
    names: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along i, j, k."""
        i, j, k = self.data.shape[1:]
        return i, j, k

    @property
    def channels(self) -> int:
        return int(self.data.shape[0])

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres between neighbours along i, j, k."""
        i, j, k = spacing_of(self.affine).tolist()
        return i, j, k

    @property
    def voxel_ml(self) -> float:
        """Millilitres that one voxel fills."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000


def spacing_of(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """[3] float64: lengths of an affine's columns, millimetres per step along each voxel axis."""
    lengths: NDArray[np.float64] = np.sqrt(np.sum(affine[:3, :3] ** 2, axis=0))
    return lengths
