"""What augmentation must know of a scan: which value is background, where something else is, how far values spread.

Looks at a random sample of the voxels, so that a scan of any size takes the same time. Knows no labels and no teacher.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from voxtile_build.arrays import Array
from voxtile_build.evaluation.samples import Scan

SAMPLE = 65_536
"""Voxels that are looked at, of each channel at the same places."""

BACKGROUND_SHARE = 0.02
"""Of the voxels that have one value, lowest or 0, if it was written around the body; of noise, fewer have."""

LEVELS = 64
"""Bins in which the commonest value is looked for, where no value is written around the body."""

PERCENTILES = (0.5, 99.5)
"""Between which the values of a body lie, without its rarest ones."""


@dataclass(frozen=True)
class Channel:
    """What was found in a channel.

    Attributes:
        background: the value around the body; None where no value stands for it.
        lowest: value of all voxels.
        low: end of the body's range of values.
        high: the other end, above `low`.
        mean: of the body.
        std: of the body, above 0.
        sample: [SAMPLE] float32 values, background among them.
    """

    background: float | None
    lowest: float
    low: float
    high: float
    mean: float
    std: float
    sample: Array


@dataclass(frozen=True)
class Survey:
    """What was found in a scan.

    Attributes:
        channels: one for each channel.
        body: [count, axis] places of voxels that differ from the background.
    """

    channels: tuple[Channel, ...]
    body: Array


def survey(scan: Scan, seed: int) -> Survey:
    """Look at a scan.

    Args:
        scan: prepared.
        seed: of the places that are looked at.
    """
    shape = scan.volume.shape[1:]
    places = np.random.default_rng(seed).integers(0, shape, size=(SAMPLE, len(shape)))
    samples = scan.volume[(slice(None), *places.T)].astype(np.float32)
    lowest = scan.volume.reshape(len(samples), -1).min(axis=1)
    found = [_channel(sample, float(low)) for sample, low in zip(samples, lowest, strict=True)]
    inside = np.any([body for _, body in found], axis=0)
    # An empty scan has no body: any place is as good as another.
    return Survey(tuple(channel for channel, _ in found), places[inside] if inside.any() else places)


def _channel(sample: Array, lowest: float) -> tuple[Channel, Array]:
    """A channel, and which voxels of its sample belong to the body."""
    background = _background(sample, lowest)
    far = np.abs(sample - (_commonest(sample) if background is None else background))
    body = far > far.mean()
    values = sample[body] if body.any() else sample
    low, high = (float(value) for value in np.percentile(values, PERCENTILES))
    spread = float(values.std(dtype=np.float64)) or 1.0
    return Channel(background, lowest, low, max(high, low + spread), float(values.mean()), spread, sample), body


def _background(sample: Array, lowest: float) -> float | None:
    """0 or the lowest value, whichever more voxels have; None where few have either."""
    shares = {value: float((sample == value).mean()) for value in (lowest, 0.0)}
    value = max(shares, key=lambda one: shares[one])
    return value if BACKGROUND_SHARE <= shares[value] < 1 else None


def _commonest(sample: Array) -> float:
    counts, edges = np.histogram(sample, bins=LEVELS)
    index = int(counts.argmax())
    return float(edges[index] + edges[index + 1]) / 2
