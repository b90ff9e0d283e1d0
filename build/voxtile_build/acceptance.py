"""The figures that an engine must reach, and which of them it misses. Knows neither engines nor PyTorch."""

from __future__ import annotations

import math
from collections.abc import Mapping

from .spec import Spec

Limits = Mapping[str, float | None]

MAX_ABS_ERROR = {"fp32": 5e-2, "fp16": 5.5e-2, "uint8": 5.5e-2}
"""Default of acceptance.max_abs_error by output type. fp32: three times what an engine's plain sums over a large tile
cost in the worst voxel of the worst tile (0.015, OpenVINO with brain-swinunetr on an empty tile); it depends on the
number of cores. fp16 and uint8: that and one step of the type itself, up to 1/255."""


def limits_of(spec: Spec, precision: str = "fp32") -> dict[str, float | None]:
    """The acceptance figures of a spec, defaults filled in; None where there is no limit.

    Reduced precision is off by far more than fp32 in single voxels, of empty tiles above all: there Dice and flipped
    voxels decide, unless the spec names an error.
    """
    wanted = spec.acceptance
    error = wanted.max_abs_error
    if error is None and precision == "fp32":
        error = MAX_ABS_ERROR[spec.output.dtype]
    if spec.output.scores == "labels":
        error = 1.0  # a vote is right or wrong; flipped voxels and Dice say how many are
    return {"max_abs_error": error, "min_dice": wanted.min_dice, "max_flipped": wanted.max_flipped}


def misses(figures: Mapping[str, float], limits: Limits) -> list[str]:
    """Each figure that misses its limit, in words; NaN misses."""
    error, dice, flips = (limits[name] for name in ("max_abs_error", "min_dice", "max_flipped"))
    most, least, share = (_or(error, math.inf), _or(dice, -math.inf), _or(flips, math.inf))
    checks = (
        ("max_abs_error", "at most", most, figures["max_abs_error"] <= most),
        ("dice_min", "at least", least, figures["dice_min"] >= least),
        ("flipped_fraction", "at most", share, figures["flipped_fraction"] <= share),
    )
    return [
        f"{name}: expected {relation} {limit:g}, found {figures[name]:g}"
        for name, relation, limit, reached in checks
        if not reached
    ]


def _or(limit: float | None, default: float) -> float:
    return default if limit is None else limit
