"""The figures that an engine must reach, and which of them it misses. Knows neither engines nor PyTorch."""

from __future__ import annotations

import math
from collections.abc import Mapping

from voxtile_build.spec.spec import Spec

Limits = Mapping[str, float | None]

MAX_ABS_ERROR = {"fp32": 1e-3, "fp16": 1.5e-3, "uint8": 5e-3}
"""Default of acceptance.max_abs_error by output type. fp32: some hundred times what another order of sums costs where
no tile is empty. fp16 and uint8: that and one step of the type itself, up to 1/255. Who needs more says so in the
spec: an engine with one weight of its last layer wrong by 1 % is off by little more than 0.001."""

MAX_LOGIT_ERROR = 1e-3
"""Default of acceptance.max_logit_error: as large a share of all logits' range as a probability's error is of 0..1.
Where probabilities are close to 0 and 1, they hide what is wrong with the logits that the client stitches."""


NNUNET = {"max_abs_error": 5e-2, "max_logit_error": 1e-2}
"""Defaults for nnU-Net models in fp32: their logits span 50 and more, and pass some thirty normalisations. With the
default widths engines were off by 0.0015 of the range, 0.035 of a probability, and 3 voxels in 10,000."""


def limits_of(spec: Spec, precision: str = "fp32") -> dict[str, float | None]:
    """The acceptance figures of a spec, defaults filled in; None where there is no limit.

    Reduced precision is off by far more than fp32 in single voxels, of empty tiles above all: there Dice and flipped
    voxels decide, unless the spec names an error.
    """
    wanted = spec.acceptance
    error, logit_error = wanted.max_abs_error, wanted.max_logit_error
    if precision == "fp32":
        usual = {"max_abs_error": MAX_ABS_ERROR[spec.output.dtype], "max_logit_error": MAX_LOGIT_ERROR}
        default = usual if spec.nnunet is None else NNUNET
        error = default["max_abs_error"] if error is None else error
        logit_error = default["max_logit_error"] if logit_error is None else logit_error
    if spec.output.scores == "labels":
        error = 1.0  # a vote is right or wrong; changed voxels and Dice say how many are
    limits = {"max_abs_error": error, "min_dice": wanted.min_dice, "max_changed": wanted.max_changed}
    return {**limits, "max_logit_error": logit_error} if spec.output.scores == "logits" else limits


def violations(figures: Mapping[str, float], limits: Limits) -> list[str]:
    """Each figure that misses its limit, in words; NaN misses."""
    error, dice, flips = (limits[name] for name in ("max_abs_error", "min_dice", "max_changed"))
    most, least, share = (_or(error, math.inf), _or(dice, -math.inf), _or(flips, math.inf))
    checks = [
        ("max_abs_error", "at most", most, figures["max_abs_error"] <= most),
        ("dice_min", "at least", least, figures["dice_min"] >= least),
        ("changed_fraction", "at most", share, figures["changed_fraction"] <= share),
    ]
    logits = limits.get("max_logit_error")
    if logits is not None:
        checks.append(("max_logit_error", "at most", logits, figures["max_logit_error"] <= logits))
    return [
        f"{name}: expected {relation} {limit:g}, found {figures[name]:g}"
        for name, relation, limit, reached in checks
        if not reached
    ]


def _or(limit: float | None, default: float) -> float:
    return default if limit is None else limit
