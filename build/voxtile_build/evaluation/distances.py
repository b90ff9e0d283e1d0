"""Distance between the surfaces of two masks, in millimetres. Knows masks and spacings only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt, find_objects

Mask = NDArray[np.bool_]

PERCENTILE = 95


def hausdorff_95(one: Mask, other: Mask, spacing: Sequence[float]) -> float | None:
    """95th percentile of the distances from each surface to the other; the larger of the two directions.

    The surface is what a 6-neighbour erosion removes, as in MONAI's compute_hausdorff_distance(percentile=95).

    Args:
        one: [*spatial] a mask.
        other: [*spatial] another.
        spacing: mm of a voxel along each axis.

    Returns:
        Millimetres; 0 for equal masks, None if one mask is empty and the other is not.
    """
    if np.array_equal(one, other):
        return 0.0
    if not one.any() or not other.any():
        return None
    (box,) = find_objects((one | other).astype(np.uint8))
    surfaces = [_surface(mask[box]) for mask in (one, other)]
    there = _percentile(surfaces[0], surfaces[1], spacing)
    back = _percentile(surfaces[1], surfaces[0], spacing)
    return max(there, back)


def _percentile(source: Mask, target: Mask, spacing: Sequence[float]) -> float:
    distances: NDArray[Any] = distance_transform_edt(~target, sampling=tuple(spacing))
    return float(np.percentile(distances[source], PERCENTILE))


def _surface(mask: Mask) -> Mask:
    surface: Mask = mask ^ binary_erosion(mask)
    return surface
