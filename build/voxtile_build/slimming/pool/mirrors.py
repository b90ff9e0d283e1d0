"""Finds out along which axes a teacher agrees with its own mirror image.

A teacher that tells a left kidney from a right one does not: a student that is shown its answers mirrored would be
taught a wrong side. What is compared is what becomes the mask, label by label, because one label may have a side where
all others have none. Knows neither scans nor the pool's files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from voxtile_build.arrays import Array

AGREEMENT = 0.97
"""Least Dice, for each label, between a teacher's answer and that to the mirrored patch, mirrored back. A student that
is shown mirrored answers learns their mean, and agrees with its teacher hardly better than the teacher agrees with its
own mirror image: 0.97 is what a student is to reach. A label with a side of its own comes to about 0."""

ENOUGH = 500
"""Voxels of a label that are asked about, if the patches show as many; the first patch that shows it is among them."""

FEW = 50
"""Voxels of a label in the whole pool that say nothing, as one more or less changes their Dice."""

ASKED = 0.25
"""Share of the patches that are asked about at most, each once an axis."""

Overlap = Mapping[str, Sequence[Sequence[int]]]
"""By axis: for each class, voxels in both answers, and voxels in the one plus voxels in the other."""


def voxels(masks: Array) -> list[int]:
    """Of each class of `masks` [class, *roi]."""
    return [int(mask.sum()) for mask in masks]


def overlap(masks: Array, others: Array) -> list[list[int]]:
    """For each class the voxels in both, and in the one plus in the other."""
    return [[int((a & b).sum()), int(a.sum() + b.sum())] for a, b in zip(masks, others, strict=True)]


def worth_asking(found: Sequence[int], asked: Sequence[int]) -> bool:
    """Whether a patch with so many voxels of each class shows one of which too few were asked about so far."""
    return any(count and known < ENOUGH for count, known in zip(found, asked, strict=True))


def own_axes(mirrorings: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The axes along which a mean over `mirrorings` (the axes of each pass) is its own mirror image by construction."""
    passes = {frozenset(axes) for axes in mirrorings}
    axes = sorted(frozenset[int]().union(*passes))
    return tuple(axis for axis in axes if {one ^ {axis} for one in passes} == passes)


def agreeing(
    overlaps: Sequence[Overlap], found: Sequence[int], axes: Sequence[int], given: Sequence[int]
) -> tuple[int, ...]:
    """The axes along which answers may be mirrored: those where every label agrees that the pool shows.

    Args:
        overlaps: of the patches asked.
        found: voxels of each class in the whole pool.
        axes: of the ROI.
        given: axes along which the teacher is its own mirror image.
    """
    return tuple(axis for axis in axes if axis in given or _agrees([one[str(axis)] for one in overlaps], found))


def _agrees(overlaps: list[Sequence[Sequence[int]]], found: Sequence[int]) -> bool:
    shown = np.asarray(found) >= FEW
    if not overlaps or not shown.any():
        return False
    both, sums = np.sum(overlaps, axis=0).T
    # A label that was not asked about counts as one that disagrees.
    return bool((2 * both[shown] >= AGREEMENT * np.maximum(sums[shown], 1)).all())
