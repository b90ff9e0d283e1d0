"""Makes of a scan and its mask what a page carries: two images of NIfTI of a size that a laptop can draw.

What is too large is thinned out: every second or third voxel is left, so each that is shown is one of the scan, at its
own place. Numbers of a wide range are rounded for the picture alone. Knows nothing of pages.
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.io.geometry import spacing_of
from voxtile.io.volume import Volume

MOST_VOXELS = 12_000_000
"""Voxels that are drawn at most. At 12 million a page has 35 MB at most, and is drawn in seconds without a GPU."""

MOST_ALONG = 1024
"""Voxels along an axis at most; WebGL 2 takes twice as many on nearly every machine."""

MARGIN = 16
"""Widths of the window that numbers are kept exactly within, on each side: what is beyond is white or black anyway."""

STEPS = 65535
"""Steps that 16 bits tell apart."""

COMPRESSION = 6
"""Of gzip: more takes several times as long for a few percent."""


@dataclass(frozen=True)
class PageImages:
    """A scan and its mask as a page carries them.

    Attributes:
        scan: the first channel, a .nii.gz file in base64.
        mask: the numbers of the structures, a .nii.gz file in base64.
        every: along each axis, every how many voxels one is shown.
        kept: lowest and highest value that is shown as it is; None where all are.
    """

    scan: str
    mask: str
    every: tuple[int, int, int]
    kept: tuple[float, float] | None


def page_images(volume: Volume, numbers: NDArray[Any], window: tuple[float, float]) -> PageImages:
    """Makes the images.

    Args:
        volume: the scan.
        numbers: [i, j, k] the numbers of the structures, uint8 or uint16; 0 is background.
        window: the values that the page first shows black and white.
    """
    every = thinning(volume.shape, volume.spacing)
    some = tuple(slice(None, None, step) for step in every)
    affine = np.diag([volume.unit, volume.unit, volume.unit, 1.0]) @ volume.affine @ np.diag([*every, 1.0])
    values, slope, inter, kept = storable(volume.data[0][some], window)
    return PageImages(_packed(values, affine, slope, inter), _packed(numbers[some], affine), every, kept)


def thinning(shape: Sequence[int], spacing: Sequence[float]) -> tuple[int, int, int]:
    """Every how many voxels one is shown along each axis, so that what is left is small and as even as possible."""
    every = [-(-size // MOST_ALONG) for size in shape]
    while np.prod([-(-size // step) for size, step in zip(shape, every, strict=True)], dtype=float) > MOST_VOXELS:
        apart = [
            step * distance if step < size else np.inf
            for size, step, distance in zip(shape, every, spacing, strict=True)
        ]
        every[int(np.argmin(apart))] += 1
    i, j, k = every
    return i, j, k


def storable(
    values: NDArray[Any], window: tuple[float, float]
) -> tuple[NDArray[Any], float, float, tuple[float, float] | None]:
    """Values as 8 or 16 bits with a slope and an intercept, and between which values they are kept.

    Integers that fit are kept as they are. Others are rounded to a 65,535th of their range, or of the window and its
    neighbourhood where that is narrower.
    """
    if values.dtype in (np.uint8, np.int16, np.uint16):
        return values, 1.0, 0.0, None
    low, high = float(values.min()), float(values.max())
    shorts = np.iinfo(np.int16)
    if values.dtype.kind in "iu" and shorts.min <= low and high <= shorts.max:
        return values.astype(np.int16), 1.0, 0.0, None
    wide = MARGIN * (window[1] - window[0])
    least, most = max(low, window[0] - wide), min(high, window[1] + wide)
    slope = (most - least) / STEPS or 1.0
    inter = least - shorts.min * slope
    scaled = np.rint((np.clip(values, least, most).astype(np.float64) - inter) / slope)
    kept = None if (least, most) == (low, high) else (least, most)
    return np.clip(scaled, shorts.min, shorts.max).astype(np.int16), slope, inter, kept


def _packed(values: NDArray[Any], affine: NDArray[np.float64], slope: float = 1.0, inter: float = 0.0) -> str:
    from nibabel.nifti1 import Nifti1Image

    image = Nifti1Image(values, None)
    image.header.set_sform(affine, code=1)
    image.header.set_zooms(spacing_of(affine))  # NiiVue takes proportions from these
    image.header.set_slope_inter(slope, inter)
    image.header.set_xyzt_units("mm")
    return base64.b64encode(gzip.compress(image.to_bytes(), COMPRESSION, mtime=0)).decode()
