"""Which patches a step shows, and how they are mirrored: by seed and step alone, so that a restart changes nothing.

Knows neither the patches nor the network.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from voxtile.tiling.extract import tta_flips
from voxtile_build.arrays import Array

ORDER, BALANCED, MIRRORED = 0, 1, 2
"""Number the streams of random numbers, each drawn by (seed, stream, position)."""


class Sampling:
    """Every other sample goes through all patches, in another order each time. The others choose a label first, and
    then one of the patches that show it: a label that is in few patches is learnt all the same.
    """

    def __init__(self, voxels: Array, seed: int, flips: Sequence[int]) -> None:
        """Prepare the choice.

        Args:
            voxels: [patch, class] of each class in each patch.
            seed: of the order.
            flips: axes of the ROI along which patches may be mirrored.
        """
        self._count, self._seed = len(voxels), seed
        self._showing = [np.flatnonzero(column) for column in np.asarray(voxels).T if column.any()]
        self._flips = tta_flips(flips)

    def batch(self, step: int, size: int) -> tuple[list[int], list[tuple[int, ...]]]:
        """The patches of a step, numbered from 0, and for each the axes along which it is mirrored."""
        samples = range(step * size, (step + 1) * size)
        return [self._patch(sample) for sample in samples], [self._flip(sample) for sample in samples]

    def _patch(self, sample: int) -> int:
        turn, rest = divmod(sample, 2)
        if rest and self._showing:
            rng = self._rng(BALANCED, sample)
            return int(rng.choice(self._showing[rng.integers(len(self._showing))]))
        order = self._rng(ORDER, turn // self._count).permutation(self._count)
        return int(order[turn % self._count])

    def _flip(self, sample: int) -> tuple[int, ...]:
        return self._flips[self._rng(MIRRORED, sample).integers(len(self._flips))]

    def _rng(self, stream: int, position: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, stream, position])
