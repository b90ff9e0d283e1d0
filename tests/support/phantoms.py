"""Small scans that are like nothing but themselves: no flip, exchange of axes or shift leaves them unchanged.

One anatomy, in millimetres, is stored in many ways: any order and direction of axes, any spacing, oblique or skewed.
"""

from __future__ import annotations

import itertools
from typing import Any

import nibabel as nib
import numpy as np
from nibabel import orientations
from numpy.typing import NDArray

from voxtile.card import Card
from voxtile.io.volume import Volume

ORIENTATIONS = tuple(
    "".join(code) for axes in itertools.permutations(("RL", "AP", "SI")) for code in itertools.product(*axes)
)
"""All 48 ways to store three axes."""


def anatomy(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """[n] intensity at `points` [n, 3], RAS millimetres: an egg-shaped head with a nose in front and one lesion on the
    right, brighter towards the top. Smooth, between 0 and about 1000."""
    x, y, z = points.T
    head = np.exp(-(((x / 16) ** 2 + ((y + 0.1 * z) / 21) ** 2 + (z / 18) ** 2) ** 2))
    nose = 0.5 * np.exp(-((x / 3) ** 2 + ((y - 21) / 5) ** 2 + ((z + 4) / 3) ** 2))
    lesion = 0.8 * np.exp(-(((x - 7) / 4) ** 2 + ((y + 5) / 6) ** 2 + ((z - 3) / 3) ** 2))
    values: NDArray[np.float64] = 900 * (head * (0.6 + 0.01 * z) + nose + lesion) / 1.6
    return values


def affine_of(
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    codes: str = "RAS",
    angles: tuple[float, float, float] = (0.0, 0.0, 0.0),
    shear: float = 0.0,
) -> NDArray[np.float64]:
    """[4, 4] voxel to RAS of a grid whose middle is the origin: axes run along `codes`, turned by `angles` (degrees)
    about x, y and z, the third axis leaning towards the first by `shear`."""
    turn = np.eye(3)
    for axis, angle in enumerate(np.radians(angles)):
        a, b = [other for other in range(3) if other != axis]
        step = np.eye(3)
        step[a, a] = step[b, b] = np.cos(angle)
        step[a, b], step[b, a] = -np.sin(angle), np.sin(angle)
        turn = step @ turn
    along = np.zeros((3, 3))
    for axis, code in enumerate(codes):
        world = next(w for w, pair in enumerate(("RL", "AP", "SI")) if code in pair)
        along[world, axis] = 1.0 if code in "RAS" else -1.0
    lean = np.eye(3)
    lean[0, 2] = shear
    affine = np.eye(4)
    affine[:3, :3] = turn @ along @ lean @ np.diag(spacing)
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def sampled(shape: tuple[int, int, int], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """[i, j, k] the anatomy at the voxels of a grid."""
    voxels = np.indices(shape).reshape(3, -1)
    points = (affine[:3, :3] @ voxels + affine[:3, 3:]).T
    return anatomy(points).reshape(shape)


def restored_as(
    data: NDArray[Any], affine: NDArray[np.float64], codes: str
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """The same voxels, stored with axes along `codes`: what a scanner's export in another order would be."""
    change = orientations.ornt_transform(orientations.io_orientation(affine), orientations.axcodes2ornt(codes))
    moved = orientations.apply_orientation(data, change)
    return moved, affine @ orientations.inv_ornt_aff(change, data.shape)


def phantom_volume(
    shape: tuple[int, int, int] = (24, 31, 27),
    spacing: tuple[float, float, float] = (2.0, 1.5, 1.7),
    codes: str = "RAS",
    angles: tuple[float, float, float] = (0.0, 0.0, 0.0),
    dtype: Any = np.int16,
    channels: int = 1,
) -> Volume:
    """The anatomy as a Volume, i fastest in memory as in a file; further channels are dimmer and shifted."""
    affine = affine_of(shape, spacing, codes, angles)
    first = sampled(shape, affine)
    stack = np.stack([np.roll(first, 2 * c, axis=1) / (1 + c) for c in range(channels)])
    values = np.rint(stack) if np.dtype(dtype).kind in "iu" else stack
    return Volume(
        in_file_order(values.astype(dtype)),
        affine,
        header_of(shape, affine),
        tuple(f"channel{c}" for c in range(channels)),
    )


def in_file_order(values: NDArray[Any]) -> NDArray[Any]:
    """The same [channel, i, j, k] with i fastest in memory within each channel."""
    return np.ascontiguousarray(values.transpose(0, 3, 2, 1)).transpose(0, 3, 2, 1)


def header_of(shape: tuple[int, ...], affine: NDArray[np.float64]) -> Any:
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_sform(affine, code=1)
    header.set_qform(affine, code=1)
    return header


def saved(
    path: Any,
    data: NDArray[Any],
    affine: NDArray[np.float64],
    version: int = 1,
    qform: int | None = 1,
    sform: int | None = 1,
) -> Any:
    """Writes a NIfTI file with nibabel, with these qform and sform codes; returns the path."""
    klass = nib.Nifti1Image if version == 1 else nib.Nifti2Image
    image = klass(data, affine)
    image.header.set_xyzt_units("mm", "sec")
    if qform is not None:
        image.set_qform(affine, code=qform)
    if sform is not None:
        image.set_sform(affine, code=sform)
    nib.save(image, path)
    return path


def card_of(**changes: Any) -> Card:
    """A small valid card: one channel, RAS, no resampling, two classes as logits; `changes` replace its fields."""
    fields: dict[str, Any] = {
        "schema_version": 1,
        "name": "phantom",
        "channels": ("any",),
        "orientation": "RAS",
        "spacing": None,
        "intensity": {"rule": "none"},
        "roi_size": (16, 16, 16),
        "input": {"dtype": "fp32", "padding": -3.4028234663852886e38},
        "output": {"kind": "logits", "dtype": "fp32", "scores": 2},
        "labels": ({"name": "background", "value": 0}, {"name": "head", "value": 1}),
        "tiling": {},
        "engine": "none",
        "certificates": {},
        "provenance": {"network": "none", "weights_sha256": "", "onnx_sha256": ""},
    }
    return Card.model_validate(fields | changes)
