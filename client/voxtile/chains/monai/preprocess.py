"""Brings a scan to a model's grid as MONAI's transforms do, and takes the statistics of the whole scan there.

    Orientationd(axcodes) → Spacingd(pixdim, mode="bilinear", padding_mode="border") → statistics on the new grid

Knows nothing of tiles, or of how values are sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.card import Card, IntensityPercentile, IntensityZscore
from voxtile.chains.monai.grid import Grid
from voxtile.chains.monai.intensity import intensity_statistics
from voxtile.chains.monai.journey import Way, carry_out
from voxtile.io.volume import Volume
from voxtile.transforms.base import Transform
from voxtile.transforms.preprocessing import Orientation, Spacing


@dataclass(frozen=True, eq=False)
class Preprocessed:
    """A scan on a model's grid.

    Attributes:
        data: [channel, x, y, z] in the card's orientation and spacing: float32, or the stored integers (a view of the
            scan) where nothing had to be resampled.
        statistics: [channel, 2] float32, what to subtract and what to divide by, in the scan's own units; None where
            the model needs neither.
        grid: maps to the scan's own grid; for a card with a chain of steps, `way` does.
        names: what messages call each channel.
        way: how the model's grid came from the scan's.
    """

    data: NDArray[Any]
    statistics: NDArray[np.float32] | None
    grid: Grid
    names: tuple[str, ...]
    way: Way


def preprocess(volume: Volume, card: Card, *, max_bytes: int | None = None, threads: int | None = None) -> Preprocessed:
    """Returns `volume` in the orientation and spacing of `card`, or after its chain of steps.

    Args:
        volume: the scan.
        card: the model's card.
        max_bytes: limit for what resampling takes; None for the machine's own memory.
        threads: threads that resample; by default the usable cores.

    Raises:
        MemoryLimitError: resampling would need more than `max_bytes`, or more than the machine has.
        InputError: the scan has nothing to normalise by, or its spacing leaves no grid to segment.
    """
    zeros = getattr(card.intensity, "mask", "all") == "nonzero"
    carried = carry_out(_steps(card), volume, max_bytes, threads, zeros)
    statistics = None
    if isinstance(card.intensity, (IntensityZscore, IntensityPercentile)):
        statistics = intensity_statistics(carried.data, card.intensity, volume.channel_names)
    way = carried.way_back
    grid = Grid(volume.shape, way.orientation, way.maps, carried.affine)
    return Preprocessed(carried.data, statistics, grid, volume.channel_names, way)


def _steps(card: Card) -> Sequence[Transform]:
    """The card's steps; without any, those of its orientation and spacing."""
    if card.preprocessing is not None:
        return card.preprocessing
    turn = [] if card.orientation is None else [Orientation(axcodes=card.orientation)]
    return turn if card.spacing is None else [*turn, Spacing(pixdim=card.spacing)]
