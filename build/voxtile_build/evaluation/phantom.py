"""A generated scan, for where a spec names none: asymmetric along every axis, and the same for the same seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.chains.monai.intensity_steps import change_values
from voxtile_build.spec.input import Intensity, IntensityFixed, IntensityRange, IntensityZscore
from voxtile_build.spec.preparation import fixed_rule
from voxtile_build.spec.spec import Spec

Array = NDArray[Any]

SEED = 20_240_917
SLICES = 5
# (centre, half-axes) as shares of the volume, and brightness: no flip or rotation maps one onto another.
BODY = ((0.48, 0.53, 0.50), (0.44, 0.40, 0.46), 0.35)
ORGANS = (
    ((0.33, 0.45, 0.42), (0.14, 0.22, 0.25), 0.60),
    ((0.66, 0.58, 0.55), (0.20, 0.12, 0.18), 0.85),
    ((0.55, 0.30, 0.70), (0.07, 0.09, 0.06), 1.00),
)
NOISE = 0.04


def phantom(spec: Spec, seed: int = SEED) -> Array:
    """A volume [channel, *spatial] float64, in the units that the spec's intensity rule expects.

    Sizes are odd, larger than the ROI along two axes and smaller along the last, so that tiles overlap and one axis is
    padded. Before the values are brought to the rule's units, every voxel outside the body is exactly 0.
    """
    rng = np.random.default_rng(seed)
    shape = phantom_shape(spec)
    channels = [_channel(rng, shape, 1.0 - 0.15 * index) for index in range(len(spec.input.channels))]
    return _in_units(np.stack(channels), spec)


def phantom_shape(spec: Spec) -> tuple[int, ...]:
    """Spatial shape; for a 2D ROI with the axis of its slices inserted."""
    sizes = [_odd(size * share) for size, share in zip(spec.tiling.roi_size, (1.25, 1.125, 0.75), strict=False)]
    if spec.tiling.slice_axis is not None:
        sizes.insert(spec.tiling.slice_axis, SLICES)
    return tuple(sizes)


def _odd(size: float) -> int:
    return int(size) | 1


def _channel(rng: np.random.Generator, shape: tuple[int, ...], gain: float) -> Array:
    grid = np.meshgrid(*((np.arange(size) + 0.5) / size for size in shape), indexing="ij")
    inside = _ellipsoid(grid, *BODY[:2])
    values = np.full(shape, BODY[2])
    for centre, half_axes, brightness in ORGANS:
        values[_ellipsoid(grid, centre, half_axes)] = brightness
    # A slow gradient, as an MR coil causes it, so that no two tiles hold the same values.
    values = values * (1 + 0.2 * grid[0] - 0.1 * grid[-1]) + NOISE * rng.standard_normal(shape)
    body: Array = np.where(inside, np.clip(gain * values, 0.01, None), 0.0)
    return body


def _ellipsoid(grid: Sequence[Array], centre: tuple[float, ...], half_axes: tuple[float, ...]) -> Array:
    parts = ((axis - c) / h for axis, c, h in zip(grid, centre, half_axes, strict=True))
    inside: Array = np.sum([part**2 for part in parts], axis=0) <= 1
    return inside


def _in_units(unit: Array, spec: Spec) -> Array:
    """In the units of the first step for values, and then after those steps that the client carries out."""
    preparation = spec.preparation
    if not preparation.value_steps:
        return _scaled(unit, preparation.intensity, spec)
    rule = fixed_rule(preparation.value_steps[0], len(unit)) or IntensityZscore()
    values = _scaled(unit, rule, spec).astype(np.float32)
    for step in preparation.value_steps:
        change_values(step, values)
    return values.astype(np.float64)


def _scaled(unit: Array, rule: Intensity, spec: Spec) -> Array:
    if isinstance(rule, IntensityRange):
        return rule.a_min + unit * (rule.a_max - rule.a_min)
    if isinstance(rule, IntensityFixed):
        column = (-1, *(1,) * (unit.ndim - 1))
        mean, std = (np.reshape(numbers, column) for numbers in (rule.mean, rule.std))
        spread: Array = mean + (unit - 0.5) * 4 * std
        return spread
    if rule.rule == "none" and spec.input.dtype != "int16":
        return unit
    return unit * 1000
