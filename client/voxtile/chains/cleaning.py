"""Steps of a chain that change decided labels, as MONAI 1.6 computes them: components, holes, small objects.

Labels come as MONAI has them: [1, x, y, z] with a number a voxel, or [region, x, y, z] with 0 and 1. MONAI takes
components from scikit-image, which takes them from the same algorithm as SciPy; in both they are counted in the order
of the array. Knows nothing of scores or cards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.transforms.base import Transform, several
from voxtile.transforms.postprocessing import (
    FillHoles,
    KeepLargestConnectedComponent,
    LabelFilter,
    RemoveSmallObjects,
)

Labels = NDArray[Any]

BYTES_A_VOXEL = 8
"""Of what a step holds besides the labels: numbers of components in 32 bits, and masks."""


def clean(labels: Labels, steps: Sequence[Transform], voxel_mm3: float) -> None:
    """Applies `steps` to `labels` [channel, x, y, z] in place.

    Args:
        labels: unsigned integers; several channels hold 0 and 1.
        steps: what is done, in order.
        voxel_mm3: cubic millimetres of a voxel.
    """
    for step in steps:
        if isinstance(step, KeepLargestConnectedComponent):
            _keep_largest(labels, step)
        elif isinstance(step, FillHoles):
            _fill_holes(labels, step)
        elif isinstance(step, RemoveSmallObjects):
            _remove_small(labels, step, voxel_mm3)
        elif isinstance(step, LabelFilter):
            labels[~np.isin(labels, several(step.applied_labels))] = 0
        else:
            raise TypeError(f"{type(step).__name__} is no step for labels")


def _keep_largest(labels: Labels, step: KeepLargestConnectedComponent) -> None:
    onehot = len(labels) > 1 if step.is_onehot is None else step.is_onehot
    found = _numbers(labels, onehot) if step.applied_labels is None else several(step.applied_labels)
    if not step.independent:
        union = (labels[list(found)] == 1).any(axis=0) if onehot else np.isin(labels[0], found)
        dropped = union & ~_largest(union, step)
        for channel in (labels[number] for number in found) if onehot else labels[:1]:
            channel[dropped] = 0
        return
    for number in found:
        mask = labels[number] > 0 if onehot else labels[0] == number
        labels[number if onehot else 0][mask & ~_largest(mask, step)] = 0


def _numbers(labels: Labels, onehot: bool) -> tuple[int, ...]:
    """The labels that occur, but 0."""
    if onehot:
        return tuple(number for number in range(1, len(labels)) if labels[number].any())
    return tuple(int(number) for number in np.unique(labels[0]) if number)


def _largest(mask: NDArray[np.bool_], step: KeepLargestConnectedComponent) -> NDArray[np.bool_]:
    components, count = _components(mask, step.connectivity)
    if count <= step.num_components:
        return mask
    sizes = _sizes(components, count)
    sizes[0] = 0
    keep = np.zeros(count + 1, bool)
    keep[np.argsort(sizes)[::-1][: step.num_components]] = True
    kept: NDArray[np.bool_] = keep[components]
    return kept


def _fill_holes(labels: Labels, step: FillHoles) -> None:
    from scipy import ndimage

    onehot = len(labels) > 1
    structure = ndimage.generate_binary_structure(3, step.connectivity or 3)
    numbers = several(step.applied_labels) if step.applied_labels else _numbers(labels, onehot)
    for number in numbers:
        if number == 0:
            continue
        # What the outside reaches without entering the label is no hole.
        free = labels[number] == 0 if onehot else labels[0] != number
        outside = ndimage.binary_dilation(
            np.zeros(free.shape, bool), structure=structure, iterations=-1, mask=free, border_value=1
        )
        labels[number if onehot else 0][~outside] = 1 if onehot else number


def _remove_small(labels: Labels, step: RemoveSmallObjects, voxel_mm3: float) -> None:
    if labels.min() == labels.max():
        return
    least = math.ceil(step.min_size / voxel_mm3) if step.by_measure else step.min_size
    if step.independent_channels and labels.max() > 1:
        # MONAI then takes each number for one object, wherever its voxels lie.
        sizes = np.sum([np.bincount(plane.ravel(), minlength=int(labels.max()) + 1) for plane in labels[0]], axis=0)
        labels[(sizes < least)[labels]] = 0
        return
    # Over all four axes: voxels of one place in two channels are neighbours.
    components, count = _components(labels > 0, step.connectivity)
    labels[(_sizes(components, count) < least)[components]] = 0


def _components(mask: NDArray[np.bool_], connectivity: int | None) -> tuple[NDArray[np.int32], int]:
    from scipy import ndimage

    structure = ndimage.generate_binary_structure(mask.ndim, connectivity or mask.ndim)
    components = np.zeros(mask.shape, np.int32)
    return components, int(ndimage.label(mask, structure, output=components))


def _sizes(components: NDArray[np.int32], count: int) -> NDArray[np.int64]:
    """[count + 1] voxels of each component; in pieces, because `bincount` makes int64 of what it is given."""
    sizes = np.zeros(count + 1, np.int64)
    for plane in components.reshape(-1, *components.shape[-2:]):
        sizes += np.bincount(plane.ravel(), minlength=count + 1)
    return sizes
