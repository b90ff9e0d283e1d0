"""Changes the values of a patch as other scanners would: tone, resolution, sharpness, shading, noise.

Works in the scan's own unit, before normalisation, with numbers relative to the scan's own spread. Knows no labels and
no anatomy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from voxtile_build.arrays import Array
from voxtile_build.slimming.pool.survey import Channel


@dataclass(frozen=True)
class Strength:
    """How much is changed.

    Attributes:
        gamma: of the tone curve, ± on a logarithmic scale.
        curve: of an S-curve on top, ±; below 1 it stays monotonic.
        lift: of the body above the background, as a share of its range.
        gain: ± about the body's mean.
        offset: ± in standard deviations of the body.
        sharpening: of edges, in times their height, at most.
        shading: of a smooth field of factors, on a logarithmic scale.
        noise: in standard deviations of the body, at most.
    """

    gamma: float
    curve: float
    lift: float
    gain: float
    offset: float
    sharpening: float
    shading: float
    noise: float


RELATIVE = Strength(gamma=0.4, curve=0.5, lift=0.25, gain=0.15, offset=0.2, sharpening=1.5, shading=0.2, noise=0.35)
"""For models that normalise by the scan's own statistics: they see every scanner's values."""

ABSOLUTE = Strength(gamma=0, curve=0, lift=0, gain=0.03, offset=0.03, sharpening=0.3, shading=0, noise=0.1)
"""For models that take values as they are, such as Hounsfield units: those mean the same in every scan."""

TONED, COARSER, BLURRED, SHARPENED, SHADED, NOISY = 0.8, 0.25, 0.15, 0.2, 0.5, 0.5
"""Shares of the augmented patches that each change is made to; resolution changes in one way only."""

LARGEST_FACTOR = 2.5
"""Of a coarser resolution, along each axis."""

Tone = Callable[[Array], Array]
"""New values for old ones, voxel by voxel: the same for a patch and for its scan's statistics."""


def draw_tone(rng: np.random.Generator, channel: Channel, strength: Strength) -> Tone:
    """A random monotonic change of a channel's values; the background keeps its value."""
    gamma = float(np.exp(rng.uniform(-1, 1) * strength.gamma))
    curve, lift = rng.uniform(-1, 1) * strength.curve, rng.uniform(0, 1) * strength.lift
    gain, offset = 1 + rng.uniform(-1, 1) * strength.gain, rng.uniform(-1, 1) * strength.offset
    if rng.random() >= TONED:
        return lambda values: values
    lift = 0.0 if channel.background is None else lift
    span = channel.high - channel.low

    def tone(values: Array) -> Array:
        unit = (values - channel.low) / span
        unit = np.sign(unit) * np.abs(unit) ** gamma
        # x + a·sin(2πx)/2π has slope 1 + a·cos(2πx) > 0 for |a| < 1: monotonic.
        unit = unit + curve / (2 * np.pi) * np.sin(2 * np.pi * np.clip(unit, 0, 1)) + lift
        changed = channel.low + span * unit
        changed = channel.mean + gain * (changed - channel.mean) + offset * channel.std
        kept: Array = changed if channel.background is None else np.where(values == channel.background, values, changed)
        return kept.astype(np.float32)

    return tone


def degrade(rng: np.random.Generator, values: Array, channel: Channel, strength: Strength) -> Array:
    """Change resolution or sharpness, shading and noise of a channel [*roi] float32, each at random."""
    values = _resolved(rng, values, strength)
    if rng.random() < SHADED and strength.shading:
        base = channel.low if channel.background is None else channel.background
        values = base + (values - base) * np.exp(strength.shading * rng.uniform() * smooth(rng, values.shape))
    if rng.random() < NOISY:
        noise = rng.standard_normal(values.shape, dtype=np.float32)
        values = values + noise * np.float32(strength.noise * rng.uniform() * channel.std)
    return values.astype(np.float32)


def _resolved(rng: np.random.Generator, values: Array, strength: Strength) -> Array:
    chance = rng.random()
    if chance < COARSER:
        return coarser(values, rng.uniform(1, LARGEST_FACTOR, size=values.ndim))
    if chance < COARSER + BLURRED:
        blurred: Array = ndimage.gaussian_filter(values, rng.uniform(0.3, 1.0))
        return blurred
    if chance < COARSER + BLURRED + SHARPENED:
        sharper: Array = values + strength.sharpening * rng.uniform() * (values - ndimage.uniform_filter(values, 3))
        return sharper
    return values


def coarser(values: Array, factors: Array) -> Array:
    """Sample a channel [*roi] by `factors` fewer voxels along each axis, and bring it back to its own grid."""
    shape = np.asarray(values.shape)
    few = np.maximum(np.rint(shape / factors), 2)
    steps = np.maximum(shape - 1, 1) / (few - 1)
    small = ndimage.affine_transform(
        values, np.diag(steps), output_shape=tuple(few.astype(int)), order=1, mode="nearest"
    )
    back: Array = ndimage.affine_transform(
        small, np.diag(1 / steps), output_shape=values.shape, order=1, mode="nearest"
    )
    return back


def smooth(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """A smooth random field [*shape] float32, about ±1: a grid of 3 along each axis, interpolated."""
    grid = rng.standard_normal((3,) * len(shape), dtype=np.float32)
    steps = 2 / np.maximum(np.asarray(shape) - 1, 1)
    field: Array = ndimage.affine_transform(grid, np.diag(steps), output_shape=shape, order=1, mode="nearest")
    return field
