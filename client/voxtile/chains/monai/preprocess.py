"""A scan as a model wants it: oriented, spaced, with the figures of the whole scan. MONAI's chain:

Orientationd(axcodes) → Spacingd(pixdim, mode="bilinear", padding_mode="border") → figures on the new grid
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.card import Card, IntensityPercentile, IntensityZscore
from voxtile.chains.monai.encoding import Encoding, choose_encoding
from voxtile.chains.monai.grid import Grid, plan_grid
from voxtile.chains.monai.intensity import intensity_statistics
from voxtile.chains.monai.resample import SLAB_BYTES, resample, usable_threads
from voxtile.errors import MemoryLimitError
from voxtile.io.volume import Volume

__all__ = ["Encoding", "Grid", "Prepared", "choose_encoding", "plan_grid", "prepare", "prepare_bytes"]

GIB = 1 << 30


@dataclass(frozen=True, eq=False)
class Prepared:
    """A scan ready to be cut into tiles.

    data: [channel, x, y, z] in the card's orientation and spacing: float32, or the stored integers (a view of the
        scan) where nothing had to be resampled. figures: [channel, 2] float32, what to subtract and to divide by, in
        the scan's own units; None where the model needs none. grid: how to come back. names: of the channels, for
        messages.
    """

    data: NDArray[Any]
    statistics: NDArray[np.float32] | None
    grid: Grid
    names: tuple[str, ...]


def prepare(volume: Volume, card: Card, *, max_bytes: int | None = None, threads: int | None = None) -> Prepared:
    """`volume` in the orientation and spacing of `card`.

    Raises MemoryLimitError, before any work, where resampling needs more than `max_bytes`; InputError for a scan that
    has nothing to normalise by.
    """
    grid = plan_grid(volume.affine, volume.shape, card)
    needed = prepare_bytes(grid, volume.channels)
    if max_bytes is not None and needed > max_bytes:
        raise _too_large(volume, grid, needed, f"{max_bytes / GIB:.2f} GiB are left of what is allowed")
    if needed > sys.maxsize:
        raise _too_large(volume, grid, needed, "no machine can give as much")
    data = grid.orient(volume.data)
    if grid.resampled:
        try:
            data = resample(data, grid.maps, threads)
        except MemoryError:
            raise _too_large(volume, grid, needed, "this machine cannot give as much") from None
    names = _channel_names(volume)
    statistics = None
    if isinstance(card.intensity, (IntensityZscore, IntensityPercentile)):
        statistics = intensity_statistics(data, card.intensity, names)
    return Prepared(data, statistics, grid, names)


def prepare_bytes(grid: Grid, channels: int) -> int:
    """Bytes that `prepare` takes beyond the scan itself: the resampled scan, and a few slabs for each thread."""
    if not grid.resampled:
        return 0
    return 4 * channels * grid.voxels + 5 * SLAB_BYTES * usable_threads()


def _too_large(volume: Volume, grid: Grid, needed: int, why: str) -> MemoryLimitError:
    spacing = " × ".join(f"{step:.3g}" for step in volume.spacing)
    return MemoryLimitError(
        f"{volume.names[0]}: a spacing of {spacing} mm makes {' × '.join(map(str, grid.shape))} voxels for this model, "
        f"which need {needed / GIB:.2f} GiB, and {why}; is the spacing in the header right?"
    )


def _channel_names(volume: Volume) -> tuple[str, ...]:
    if len(volume.names) == volume.channels:
        return volume.names
    return tuple(f"{volume.names[0]}, channel {number + 1}" for number in range(volume.channels))
