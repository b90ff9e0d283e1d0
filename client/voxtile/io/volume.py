"""A scan as it is stored: voxels, where they lie in the patient, and the header that a mask has to repeat.

Knows nothing of models or of a file's bytes. Coordinates are NIfTI's: millimetres, x to the Right, y to the Anterior,
z to the Superior (RAS).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.io.orientation import Orientation

SAME_VOXEL_SIZE = 1e-3
"""How far, as a share, a header's voxel size may differ from its affine's and still be the more exact of the two."""


@dataclass(frozen=True, eq=False)
class Volume:
    """One scan on its own grid.

    Attributes:
        data: [channel, i, j, k], the values that the file stands for (slope and intercept applied), in the smallest
            type that holds them exactly: 8 and 16 bit integers as stored, wider ones as int16 or int32 where they fit,
            everything else as float32. Usually a view with i running fastest in memory, as NIfTI stores it.
        affine: [4, 4] float64, voxel (i, j, k) to RAS millimetres.
        header: the NIfTI-1 or NIfTI-2 header (nibabel) of the first source; a mask repeats its geometry fields.
        names: what messages call each source. One source may hold several channels.
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
        """The number of channels."""
        return int(self.data.shape[0])

    @property
    def channel_names(self) -> tuple[str, ...]:
        """What messages call each channel."""
        if len(self.names) == self.channels:
            return self.names
        return tuple(f"{self.names[0]}, channel {number + 1}" for number in range(self.channels))

    @property
    def nbytes(self) -> int:
        """Bytes of the voxels in memory."""
        return self.data.nbytes

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres between neighbours along i, j, k, by the affine."""
        i, j, k = spacing_of(self.affine).tolist()
        return i, j, k

    @property
    def header_spacing(self) -> tuple[float, float, float]:
        """Millimetres between neighbours along i, j, k, by the header's voxel size, which nnU-Net's readers take.

        It differs from `spacing` in the last digits, which can change a rounded grid size. `spacing` is returned where
        the header's voxel size is missing or contradicts the affine.
        """
        sizes = np.asarray(self.header["pixdim"][1:4], np.float64)
        if not np.allclose(sizes, spacing_of(self.affine), rtol=SAME_VOXEL_SIZE, atol=0):
            return self.spacing
        i, j, k = sizes.tolist()
        return i, j, k

    @property
    def voxel_ml(self) -> float:
        """Millilitres that one voxel fills."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000

    def towards(self, codes: str) -> Orientation:
        """Returns the orientation from this grid to axes along `codes`, for example "RAS"."""
        return Orientation.towards(codes, self.affine)


def spacing_of(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns [3] float64: the lengths of the columns of `affine` [4, 4], millimetres a step along each voxel axis."""
    lengths: NDArray[np.float64] = np.sqrt(np.sum(affine[:3, :3] ** 2, axis=0))
    return lengths
