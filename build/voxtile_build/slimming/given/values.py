"""What the values of a scan look like, in a few hundred numbers. Knows nothing of models or files."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

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
        flat: of the neighbours along one axis that are no background, the share that is equal; 0 without any.
        voxels: SHA-256 of all voxels in the order R, A, S, as float32; another type or order of axes changes nothing.
    """

    quantiles: Array
    flat: float
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
    def background(self) -> float:
        """The most frequent value, if more voxels have it than a smooth distribution would give it; else the lowest."""
        values, counts = np.unique(self.quantiles, return_counts=True)
        return float(values[counts.argmax()]) if counts.max() > STEPS // 50 else self.lowest

    def at(self, share: float) -> float:
        """The value that this share of the voxels lies below."""
        return float(np.interp(share, np.linspace(0, 1, STEPS + 1), self.quantiles))

    def share(self, low: float, high: float) -> float:
        """The share of voxels whose values are at least `low` and below `high`."""
        inside = (self.quantiles >= low) & (self.quantiles < high)
        return float(inside.mean())


def values_of(channel: Array) -> Values:
    """What the values of a channel [i, j, k] look like, in the order R, A, S."""
    step = max(1, int(np.ceil((channel.size / MOST_VOXELS) ** (1 / 3))))
    thinned = channel[::step, ::step, ::step]
    quantiles = np.quantile(thinned.astype(np.float64), np.linspace(0, 1, STEPS + 1), method="nearest")
    return Values(quantiles, _flat(channel[:, ::step, ::step]), _sha256(channel))


def _flat(channel: Array) -> float:
    background = channel.min()
    one, other = channel[:-1], channel[1:]
    seen = (one != background) & (other != background)
    return float((one[seen] == other[seen]).mean()) if seen.any() else 0.0


def _sha256(channel: Array) -> str:
    digest = hashlib.sha256(repr(channel.shape).encode())
    for plane in np.moveaxis(channel, 2, 0):
        plain = np.ascontiguousarray(plane, np.float32) + np.float32(0)  # -0 is 0
        digest.update(plain.tobytes())
    return digest.hexdigest()
