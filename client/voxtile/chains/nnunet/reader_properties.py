"""What nnU-Net's readers remember of a scan, in their own words: the .pkl beside its probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.io.volume import Volume, spacing_of

NIBABEL, REORIENTING = "NibabelIO", "NibabelIOWithReorient"
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def reader_properties(volume: Volume, reader: str, spacing: tuple[float, float, float]) -> dict[str, Any]:
    """Geometry as the reader that the model's plan names would give it, so that it can write a mask on that grid.

    spacing: millimetres along i, j, k. SimpleITK's points are LPS, nibabel's RAS.
    """
    if reader == NIBABEL:
        return {"nibabel_stuff": {"original_affine": volume.affine}}
    if reader == REORIENTING:
        both = {"original_affine": volume.affine, "reoriented_affine": _to_ras(volume)}
        return {"nibabel_stuff": both}
    affine = RAS_TO_LPS @ volume.affine
    direction = affine[:3, :3] / spacing_of(affine)
    geometry = {
        "spacing": spacing,
        "origin": tuple(affine[:3, 3].tolist()),
        "direction": tuple(direction.reshape(-1).tolist()),
    }
    return {"sitk_stuff": geometry}


def _to_ras(volume: Volume) -> NDArray[np.float64]:
    """The affine of the same scan with its axes turned to R, A, S."""
    from nibabel.orientations import inv_ornt_aff, io_orientation

    turned: NDArray[np.float64] = volume.affine @ inv_ornt_aff(io_orientation(volume.affine), volume.shape)
    return turned
