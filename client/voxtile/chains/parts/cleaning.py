"""Removes components of labels, as TotalSegmentator 2.18 does: all but the largest one, or those that are too small.

Two voxels belong together where they share a face. Knows nothing of networks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.card import CleaningStep


def clean(mask: NDArray[Any], steps: Sequence[CleaningStep], voxel_mm: Sequence[float]) -> None:
    """Does the steps, in order, to `mask` [x, y, z], which is changed; `voxel_mm` is the size of its voxels."""
    voxel = np.prod(np.asarray(voxel_mm, np.float32))  # TotalSegmentator divides in float32
    for step in steps:
        # What is as small as the limit goes too.
        most = None if step.at_most_mm3 is None else math.floor(step.at_most_mm3 / voxel)
        for label in step.labels:
            _clean_label(mask, label, most)


def _clean_label(mask: NDArray[Any], label: int, most: int | None) -> None:
    from scipy import ndimage

    components, count = ndimage.label(mask == label)
    if count == 0:
        return
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    kept = np.arange(count + 1) == sizes.argmax() if most is None else sizes > most
    mask[(components > 0) & ~kept[components]] = 0
