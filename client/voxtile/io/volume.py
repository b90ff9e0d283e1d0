"""A scan as it is stored: voxels, where they lie in the patient, and the header that a mask has to repeat.

Knows nothing of models or of a file's bytes. Coordinates are NIfTI's: millimetres, x to the Right, y to the Anterior,
z to the Superior (RAS).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.io.geometry import Triple, spacing_of
from voxtile.io.orientation import Orientation


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
        reader_spacing: distances between neighbours along i, j, k as the model's reader gives them, which nnU-Net
            rounds grid sizes by. They can contradict the affine. None for the affine's own.
        unit: millimetres that one unit of `affine` stands for by the header; 1 where the reader converts it.
        warnings: what the header contradicts itself in, and what counted, in words; without a file's name.
        native: the geometry of the first source in the words of its own format, which a mask in that format repeats;
            None where `header` holds it. Only the format itself knows what it is.
        changes: what was done to values of voxels, in words.
    """

    data: NDArray[Any]
    affine: NDArray[np.float64]
    header: Any
    names: tuple[str, ...]
    reader_spacing: Triple | None = None
    unit: float = 1.0
    warnings: tuple[str, ...] = ()
    native: Any = None
    changes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along i, j, k."""
        i, j, k = self.data.shape[1:]
        return i, j, k

    def without_voxels(self) -> Volume:
        """The scan's place alone; its voxels need not stay in memory for it."""
        return replace(self, data=np.empty((self.channels, 0, 0, 0), self.data.dtype))

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
        """Millimetres between neighbours along i, j, k, as the model's reader gives them."""
        return self.spacing if self.reader_spacing is None else self.reader_spacing

    @property
    def voxel_ml(self) -> float:
        """Millilitres that one voxel fills."""
        columns = self.affine[:3, :3] / spacing_of(self.affine) * self.header_spacing
        return float(abs(np.linalg.det(columns))) * self.unit**3 / 1000

    def towards(self, codes: str) -> Orientation:
        """Returns the orientation from this grid to axes along `codes`, for example "RAS"."""
        return Orientation.towards(codes, self.affine)
