"""The soak's scans, and the right mask of each, which needs neither network nor tiles.

Every scan is noise: a tile in the wrong place, or from another scan, gives another mask.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

NAME = "greys"
GREYS = (0, 30, 60, 90)
"""The grey value of each label."""

SHAPES = ((61, 47, 53), (24, 70, 33), (50, 50, 50), (19, 83, 41), (75, 30, 29), (44, 61, 20))
AFFINE = np.diag([1.0, 1.2, 0.9, 1.0])


def scan(number: int) -> nib.Nifti1Image:
    """Returns scan `number`: int16 noise without values in the middle between two grey values."""
    middles = {(low + high) // 2 for low, high in itertools.pairwise(GREYS)}
    values = np.array([value for value in range(GREYS[-1] + 20) if value not in middles], np.int16)
    noise = np.random.default_rng(number).choice(values, SHAPES[number % len(SHAPES)])
    return nib.Nifti1Image(noise, AFFINE)


def right_mask(image: nib.Nifti1Image) -> NDArray[np.uint8]:
    """Returns the label of each voxel: the index of the nearest grey value."""
    values: NDArray[Any] = np.asarray(image.dataobj).astype(int)
    return np.abs(values[..., None] - np.array(GREYS)).argmin(-1).astype(np.uint8)


def write_scans(folder: Path, count: int) -> None:
    """Writes `count` scans as scan-N.nii.gz."""
    for number in range(count):
        nib.save(scan(number), folder / f"scan-{number}.nii.gz")
