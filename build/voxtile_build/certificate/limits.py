"""The limits that an engine must keep, and which of them it violates. Knows neither engines nor PyTorch."""

from __future__ import annotations

import math
from collections.abc import Mapping

from voxtile_build.evaluation.summary import SEEN_VOXELS, first_of
from voxtile_build.spec.acceptance import COVERING
from voxtile_build.spec.spec import Spec

Limits = Mapping[str, float | None]

MAX_ABS_ERROR = 0.05
"""Default of acceptance.max_abs_error for fp32. It bounds a single voxel, and only that far: where a tile is nearly
uniform, normalisation divides rounding by a small spread, and engines take the sums of a norm over a tile one after the
other. SwinUNETR, UNETR and DynUNet had 0.001 to 0.01 there, nnU-Net's default widths 0.035; their masks were right.
"""

MAX_LOGIT_ERROR = 0.01
"""Default of acceptance.max_logit_error for fp32: a fifth of the above, as a share of the range of all logits.
Probabilities close to 0 and 1 hide errors of the logits, and logits are what the client stitches."""

MAX_SCORE_ERROR = {"fp32": 0.005, "reduced": 0.5}
"""Defaults of acceptance.max_score_error. No single voxel decides this one. fp32: several times what OpenVINO's norms
cost (0.0008), and half of what weights of the last layer cost that are wrong by 1 %. Reduced precision: half of what an
engine reaches that always gives the same scores."""


def limits_of(spec: Spec, precision: str = "fp32") -> dict[str, float | None]:
    """The limits of a spec for an engine of this precision, with defaults; None where there is no limit.

    In single voxels, errors of reduced precision are far larger than those of fp32, above all in empty tiles. There,
    Dice, changed voxels and the error of all scores together decide, unless the spec limits the error.
    """
    wanted, full = spec.acceptance, precision == "fp32"
    error = _or(wanted.max_abs_error, MAX_ABS_ERROR if full else None)
    score_error = MAX_SCORE_ERROR["fp32" if full else "reduced"]
    if spec.output.scores == "labels":  # a vote is right or wrong; changed voxels and Dice say how many are
        error, score_error = 1.0, MAX_SCORE_ERROR["reduced"]
    limits = {
        "max_abs_error": error,
        "max_score_error": _or(wanted.max_score_error, score_error),
        "min_dice": wanted.min_dice,
        "max_changed": wanted.max_changed,
        "allow_unseen_labels": wanted.allow_unseen_labels,
    }
    if spec.output.scores == "logits":
        limits["max_logit_error"] = _or(wanted.max_logit_error, MAX_LOGIT_ERROR if full else None)
    return limits


UPPER = (
    ("max_abs_error", "max_abs_error"),
    ("max_logit_error", "max_logit_error"),
    ("max_score_error", "score_error"),
    ("max_changed", "changed_fraction"),
)
"""Limits that a metric may not exceed, each with its metric."""


def violations(metrics: Mapping[str, float], limits: Limits) -> list[str]:
    """A sentence for each metric that violates its limit; NaN violates any, and so does a metric that is missing."""
    found = []
    for limit, metric in UPPER:
        most, value = limits.get(limit), metrics.get(metric, math.nan)
        if most is not None and not value <= most:
            found.append(f"{metric}: expected at most {most:g}, found {value:g}")
    least, value = limits["min_dice"], metrics.get("dice_min", math.nan)
    if least is not None and not value >= least:
        found.append(f"dice_min: expected at least {least:g}, found {value:g}")
    return found


def unseen_violations(unseen: Mapping[str, int], limits: Limits) -> list[str]:
    """A sentence if the scans do not show some labels, and nothing else proves that the engine gives them.

    Args:
        unseen: voxels of each label that is not seen, by its name.
        limits: of the certificate.
    """
    error = limits["max_abs_error"]
    covered = error is not None and error <= COVERING
    if not unseen or covered or limits["allow_unseen_labels"]:
        return []
    return [
        f"labels: expected scans that show at least {SEEN_VOXELS} voxels of every label, found {named(unseen)}; name "
        "scans that show them in acceptance.scans (and in precision.calibration), limit the error of every voxel "
        f"(max_abs_error = {COVERING:g} in [acceptance]), or write allow_unseen_labels = true in [acceptance]"
    ]


def named(unseen: Mapping[str, int]) -> str:
    """The labels with their voxels, the first of them by name."""
    return first_of([f"{name} in {voxels}" for name, voxels in unseen.items()])


def _or(chosen: float | None, default: float | None) -> float | None:
    return default if chosen is None else chosen
