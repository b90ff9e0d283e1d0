"""Brings a scan to a model's grid as MONAI's transforms do, and takes the statistics of the whole scan there.

    Orientationd(axcodes) → Spacingd(pixdim, mode="bilinear", padding_mode="border") → statistics on the new grid

Knows nothing of tiles, or of how values are sent.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.card import Card, IntensityPercentile, IntensityZscore
from voxtile.chains.monai.grid import Grid, plan_grid
from voxtile.chains.monai.intensity import intensity_statistics
from voxtile.chains.monai.resample import resample, resample_bytes
from voxtile.errors import MemoryLimitError
from voxtile.io.volume import Volume

GIB = 1 << 30


@dataclass(frozen=True, eq=False)
class Preprocessed:
    """A scan on a model's grid.

    Attributes:
        data: [channel, x, y, z] in the card's orientation and spacing: float32, or the stored integers (a view of the
            scan) where nothing had to be resampled.
        statistics: [channel, 2] float32, what to subtract and what to divide by, in the scan's own units; None where
            the model needs neither.
        grid: maps to the scan's own grid.
        names: what messages call each channel.
    """

    data: NDArray[Any]
    statistics: NDArray[np.float32] | None
    grid: Grid
    names: tuple[str, ...]


def preprocess(volume: Volume, card: Card, *, max_bytes: int | None = None, threads: int | None = None) -> Preprocessed:
    """Returns `volume` in the orientation and spacing of `card`.

    Args:
        volume: the scan.
        card: the model's card.
        max_bytes: limit for what resampling takes.
        threads: threads that resample; by default the usable cores.

    Raises:
        MemoryLimitError: resampling would need more than `max_bytes`, or more than the machine has.
        InputError: the scan has nothing to normalise by.
    """
    grid = plan_grid(volume.affine, volume.shape, card)
    needed = preprocess_bytes(grid, volume.channels)
    if max_bytes is not None and needed > max_bytes:
        raise _too_large(volume, grid, needed, f"{max_bytes / GIB:.2f} GiB are left of what is allowed")
    if needed > sys.maxsize:
        raise _too_large(volume, grid, needed, "no machine can give as much")
    data = grid.orientation.apply(volume.data)
    if grid.resampled:
        try:
            data = resample(data, grid.maps, threads)
        except MemoryError:
            raise _too_large(volume, grid, needed, "this machine cannot give as much") from None
    statistics = None
    if isinstance(card.intensity, (IntensityZscore, IntensityPercentile)):
        statistics = intensity_statistics(data, card.intensity, volume.channel_names)
    return Preprocessed(data, statistics, grid, volume.channel_names)


def preprocess_bytes(grid: Grid, channels: int) -> int:
    """Returns the bytes that `preprocess` takes beyond the scan itself."""
    return resample_bytes(grid.maps, channels) if grid.resampled else 0


def _too_large(volume: Volume, grid: Grid, needed: int, why: str) -> MemoryLimitError:
    spacing = " × ".join(f"{step:.3g}" for step in volume.spacing)
    return MemoryLimitError(
        f"{volume.names[0]}: a spacing of {spacing} mm makes {' × '.join(map(str, grid.shape))} voxels for this model, "
        f"which need {needed / GIB:.2f} GiB, and {why}; is the spacing in the header right?"
    )
