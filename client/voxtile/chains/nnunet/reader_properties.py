"""What nnU-Net's readers know of a scan: the axes that they give it, and the properties that go into the .pkl.

Knows nothing of plans beyond the name of the reader.
"""

from __future__ import annotations

from typing import Any

from voxtile.io.geometry import NIBABEL, REORIENTING, Triple, spacing_of
from voxtile.io.orientation import LPS_TO_RAS, Orientation
from voxtile.io.volume import Volume

FLAT_SPACING = 999
"""nnU-Net's distance between the slices of an image of two axes, in multiples of its larger spacing."""


def reader_axes(volume: Volume, reader: str) -> Orientation:
    """Returns the orientation from a volume's axes (i, j, k) to those in which `reader` gives it to nnU-Net.

    These are (z, y, x): the file's axes in reverse order, or for the reader that reorients, those of the scan turned
    to RAS.
    """
    return (volume.towards("RAS") if reader == REORIENTING else Orientation()).reversed


def reader_spacing(volume: Volume, reader: str) -> Triple:
    """Returns the distances along i, j, k with which `reader` gives a volume to nnU-Net."""
    i, j, k = volume.header_spacing
    flat = volume.header is not None and int(volume.header["dim"][0]) == 2
    return (i, j, FLAT_SPACING * max(i, j)) if flat and reader not in (NIBABEL, REORIENTING) else (i, j, k)


def reader_properties(volume: Volume, reader: str) -> dict[str, Any]:
    """Returns the geometry as `reader` gives it, so that it can write a mask on that grid.

    SimpleITK's points are in LPS, nibabel's in RAS. A plan that names no reader is SimpleITK's.
    """
    if reader == NIBABEL:
        return {"nibabel_stuff": {"original_affine": volume.affine}}
    if reader == REORIENTING:
        turned = volume.towards("RAS").apply_to_affine(volume.affine, volume.shape)
        return {"nibabel_stuff": {"original_affine": volume.affine, "reoriented_affine": turned}}
    affine = LPS_TO_RAS @ volume.affine
    direction = affine[:3, :3] / spacing_of(affine)
    geometry = {
        "spacing": volume.header_spacing,
        "origin": tuple(affine[:3, 3].tolist()),
        "direction": tuple(direction.reshape(-1).tolist()),
    }
    return {"sitk_stuff": geometry}
