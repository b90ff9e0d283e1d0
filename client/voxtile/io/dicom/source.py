"""The DICOM objects that a scan was read from, as what is written about it in DICOM needs them.

Knows nothing of how they are read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Source:
    """The objects of one series, and where each plane of the scan lies among them.

    A plane k of the scan is a frame: its i runs along the frame's columns, from left to right as it is shown, and j
    along its rows, from the top.

    Attributes:
        datasets: the headers (pydicom's Dataset, without pixels) of the objects; of a series with one object a slice,
            in the order of the planes.
        planes: for each plane k, the number of its object in `datasets` and its frame in it, from 1; None for a plane
            that no frame holds, which was filled in between its neighbours.
        shifts: [k, 2] by how many voxels along i and j the first pixel of each plane lies behind that of the scan,
            where a tilted gantry was straightened; None where none was.
    """

    datasets: tuple[Any, ...] = field(repr=False)  # a patient's, and a result that is printed shows it
    planes: tuple[tuple[int, int] | None, ...]
    shifts: NDArray[np.float64] | None = None

    @property
    def multi_frame(self) -> bool:
        """Whether an object holds several frames."""
        return "NumberOfFrames" in self.datasets[0]

    def on_frames(self, labels: NDArray[Any]) -> NDArray[Any]:
        """Returns `labels` [i, j, k] of the scan as [i, j, frame] on the frames that it was read from.

        Planes that were filled in are left out, and planes that were moved are moved back by the nearest voxel.
        """
        kept = [k for k, plane in enumerate(self.planes) if plane is not None]
        if self.shifts is None:
            return labels if len(kept) == labels.shape[2] else labels[:, :, kept]
        size = int(self.datasets[0].Columns), int(self.datasets[0].Rows)
        moved = np.zeros((*size, len(kept)), labels.dtype, order="F")
        for place, k in enumerate(kept):
            i, j = np.rint(self.shifts[k]).astype(int)
            moved[:, :, place] = labels[i : i + size[0], j : j + size[1], k]
        return moved
