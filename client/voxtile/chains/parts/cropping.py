"""Cuts a scan to the box around some labels, and puts labels of the box back into the scan.

The rule is that of TotalSegmentator 2.18: the box keeps whole voxels of a margin, and values are cut to whole numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.io.geometry import spacing_of
from voxtile.io.volume import Volume

Box = tuple[slice, slice, slice]


def box_around(
    labels: NDArray[Any], values: Sequence[int], margin_mm: float, affine: NDArray[np.float64]
) -> Box | None:
    """Returns the box of all voxels of `labels` [i, j, k] with one of `values`, with a margin; None without any.

    Args:
        labels: on the scan's own grid.
        values: the labels that are looked for.
        margin_mm: millimetres around them, cut to whole voxels.
        affine: [4, 4] of the scan.
    """
    found = np.isin(labels, values)
    if not found.any():
        return None
    margins = (margin_mm / spacing_of(affine).astype(np.float32)).astype(int)
    i, j, k = (_span(*one) for one in zip(found.nonzero(), margins.tolist(), found.shape, strict=True))
    return i, j, k


def _span(where: NDArray[np.intp], margin: int, size: int) -> slice:
    return slice(max(int(where.min()) - margin, 0), min(int(where.max()) + 1 + margin, size))


def cut(volume: Volume, box: Box) -> Volume:
    """Returns the voxels of `box`, and where they lie."""
    affine = volume.affine.copy()
    affine[:3, 3] = (volume.affine @ [*(part.start for part in box), 1])[:3]
    data = volume.data[(slice(None), *box)]
    return replace(volume, data=data if data.dtype.kind in "iu" else data.astype(np.int32), affine=affine)


def put_back(labels: NDArray[Any], box: Box, shape: Sequence[int]) -> NDArray[Any]:
    """Returns `labels` of the box in a scan of `shape` that is background everywhere else."""
    whole = np.zeros(shape, labels.dtype)
    whole[box] = labels
    return whole
