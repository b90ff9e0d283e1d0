"""What the values of a scan look like, in a few hundred numbers. Knows nothing of models or files."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from voxtile.io.intensities import most_frequent
from voxtile_build.arrays import Array

STEPS = 1000
"""Shares of voxels are known to one in so many."""

MOST_VOXELS = 2_000_000
"""Of larger scans every n-th voxel of each axis is looked at."""


@dataclass(frozen=True, eq=False)
class Values:
    """The values of one channel, in the scan's own units.

    Attributes:
        quantiles: [STEPS + 1] float64, from the lowest value to the highest.
        flat: of the neighbours along one axis that are not both background, the share that is equal; 0 without any.
        levels: how many different values the voxels have that were looked at.
        voxels: SHA-256 of all voxels in the order R, A, S, as float32; another type or order of axes changes nothing.
    """

    quantiles: Array
    flat: float
    levels: int
    voxels: str

    @property
    def lowest(self) -> float:
        """The lowest value."""
        return float(self.quantiles[0])

    @property
    def highest(self) -> float:
        """The highest value."""
        return float(self.quantiles[-1])

    @property
    def is_constant(self) -> bool:
        """Whether all voxels have one value."""
        return self.lowest == self.highest

    @property
    def spread(self) -> float:
        """What 98 % of the foreground differ by at most."""
        low, high = np.quantile(self.foreground, (0.01, 0.99))
        return float(high - low)

    @property
    def foreground(self) -> Array:
        """The quantiles without the background; all of them where there is none."""
        found: Array = self.quantiles[self.quantiles != most_frequent(self.quantiles)]
        return found if found.size else self.quantiles

    def share(self, low: float, high: float) -> float:
        """The share of all voxels whose values are at least `low` and below `high`."""
        return float(((self.quantiles >= low) & (self.quantiles < high)).mean())


def values_of(channel: Array) -> Values:
    """What the values of a channel [i, j, k] look like, in the order R, A, S."""
    step = max(1, int(np.ceil((channel.size / MOST_VOXELS) ** (1 / 3))))
    thinned = np.sort(channel[::step, ::step, ::step].astype(np.float64), axis=None)
    quantiles = thinned[np.rint(np.linspace(0, thinned.size - 1, STEPS + 1)).astype(int)]
    flat = _flat(channel[:, ::step, ::step], most_frequent(quantiles))
    levels = 1 + int(np.count_nonzero(np.diff(thinned)))
    return Values(quantiles, flat, levels, _sha256(channel))


def _flat(channel: Array, background: float | None) -> float:
    one, other = channel[:-1], channel[1:]
    seen = np.ones(one.shape, bool) if background is None else (one != background) | (other != background)
    return float((one[seen] == other[seen]).mean()) if seen.any() else 0.0


def _sha256(channel: Array) -> str:
    digest = hashlib.sha256(repr(channel.shape).encode())
    for plane in np.moveaxis(channel, 2, 0):
        plain = np.ascontiguousarray(plane, np.float32) + np.float32(0)  # -0 is 0
        digest.update(plain.tobytes())
    return digest.hexdigest()
