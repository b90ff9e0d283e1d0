"""The limits that an engine must keep, and which of them it violates. Knows neither engines nor PyTorch."""

from __future__ import annotations

import math
from collections.abc import Mapping

from voxtile_build.spec.spec import Spec

Limits = Mapping[str, float | None]

MAX_ABS_ERROR = {"fp32": 1e-3, "fp16": 1.5e-3, "uint8": 5e-3}
"""Default of acceptance.max_abs_error by output type. fp32: a hundred times the error that another order of sums causes
where no tile is empty. fp16 and uint8: that, and one step of the type itself, up to 1/255. A larger limit has to be set
in the spec: an engine with one weight of its last layer wrong by 1 % is off by little more than 0.001."""

MAX_LOGIT_ERROR = 1e-3
"""Default of acceptance.max_logit_error: the same share of the range of all logits as a probability's error is of 0..1.
Probabilities close to 0 and 1 hide errors of the logits, and logits are what the client stitches."""

NNUNET = {"max_abs_error": 5e-2, "max_logit_error": 1e-2}
"""Defaults for nnU-Net models in fp32: their logits span 50 and more, and go through about thirty normalisations. With
nnU-Net's default widths, engines were off by 0.0015 of the range, by 0.035 of a probability, and in 0.03 % of voxels.
"""


def limits_of(spec: Spec, precision: str = "fp32") -> dict[str, float | None]:
    """The limits of a spec for an engine of this precision, with defaults; None where there is no limit.

    In single voxels, errors of reduced precision are far larger than those of fp32, above all in empty tiles. There,
    Dice and changed voxels decide, unless the spec limits the error.
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


def violations(metrics: Mapping[str, float], limits: Limits) -> list[str]:
    """A sentence for each metric that violates its limit; NaN violates any."""
    error, dice, changed = (limits[name] for name in ("max_abs_error", "min_dice", "max_changed"))
    most, least, share = (_or(error, math.inf), _or(dice, -math.inf), _or(changed, math.inf))
    checks = [
        ("max_abs_error", "at most", most, metrics["max_abs_error"] <= most),
        ("dice_min", "at least", least, metrics["dice_min"] >= least),
        ("changed_fraction", "at most", share, metrics["changed_fraction"] <= share),
    ]
    logits = limits.get("max_logit_error")
    if logits is not None:
        checks.append(("max_logit_error", "at most", logits, metrics["max_logit_error"] <= logits))
    return [
        f"{name}: expected {relation} {limit:g}, found {metrics[name]:g}"
        for name, relation, limit, reached in checks
        if not reached
    ]


def _or(limit: float | None, default: float) -> float:
    return default if limit is None else limit
