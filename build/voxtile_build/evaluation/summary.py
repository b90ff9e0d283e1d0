"""Sums up the records of tiles and scans: the metrics that acceptance limits, and which labels the scans show.

Knows records alone: no engine, no arrays, no limits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from voxtile_build.evaluation.evaluate import rounded

FEW_VOXELS = 10
"""Changed voxels of a label that decide nothing in a label below ENOUGH_VOXELS: in 20 voxels, two move Dice by 0.05."""

ENOUGH_VOXELS = 1000
"""From this size on, FEW_VOXELS move the Dice of a label by at most 0.005, which is what the default limit allows."""

SEEN_VOXELS = 100
"""A label with fewer voxels in all scans together is not seen: one changed voxel alone breaks the limit of its Dice."""

NAMED = 8
"""Most labels that a sentence names; a network may have a hundred and more."""


def summary(tiles: Sequence[Mapping[str, Any]], scans: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The metrics that acceptance limits: the worst error of tiles and scans, the worst Dice and change of scans.

    Tiles of one value are recorded, but not judged: normalisation divides rounding errors by their own size there, so
    that a deep network answers with noise, in PyTorch too.
    """
    records = [record for record in (*tiles, *scans) if "max_abs_error" in record]
    errors = [record for record in records if not record.get("constant")] or records
    return {
        "max_abs_error": max(record["max_abs_error"] for record in errors),
        "mean_abs_error": max(record["mean_abs_error"] for record in errors),
        "dice_min": min((value for scan in scans for value in _decisive(scan)), default=1.0),
        "changed_fraction": max((scan["changed_fraction"] for scan in scans), default=0.0),
        "score_error": _score_error(errors, scans),
        **_logit_error([record for record in errors if "logits" in record]),
    }


def _decisive(scan: Mapping[str, Any]) -> Iterator[float]:
    """Dice of the labels that count."""
    for name, similarity in scan["dice"].items():
        if similarity is not None and counts(scan["voxels"][name], scan["changed_by_label"][name]):
            yield similarity


def counts(voxels: int, changed: int) -> bool:
    """Whether the Dice of a label counts: in a label of few voxels, a few changed ones decide nothing.

    Args:
        voxels: of the label in the reference's mask.
        changed: voxels in which the two masks of the label differ.
    """
    return voxels >= ENOUGH_VOXELS or changed > FEW_VOXELS


def _score_error(errors: Sequence[Mapping[str, Any]], scans: Sequence[Mapping[str, Any]]) -> float:
    """The root mean square error as a share of the reference's spread: of all tiles together, or of the worst scan.

    An engine that always gives the same scores has at least 1, whatever they are. Tiles count together, because one
    tile of little structure has little spread.
    """
    whole = [record for record in scans if "rms_error" in record]
    tiles = [record for record in errors if not any(record is scan for scan in whole)]
    return max(_relative(group) for group in (tiles, *([scan] for scan in whole)))


def _relative(records: Sequence[Mapping[str, Any]]) -> float:
    """The error of these records together as a share of their spread; 0 where there are none."""
    error, spread = (math.hypot(*(one[key] for one in records)) for key in ("rms_error", "spread"))
    return rounded(error / spread) if error else 0.0


def _logit_error(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The largest |Δ| of a logit as a share of the range of all logits; nothing where scores are not logits."""
    if not records:
        return {}
    lows, highs = zip(*(record["logits"] for record in records), strict=True)
    error = max(record["max_abs_error_stored"] for record in records)
    return {"max_logit_error": rounded(error / ((max(highs) - min(lows)) or 1.0))}


def unseen_labels(scans: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Labels of which the reference's masks have fewer than SEEN_VOXELS, and how many they have in all scans together.

    Of such a label, Dice and changed voxels prove nothing.
    """
    totals: dict[str, int] = {}
    for scan in scans:
        for name, voxels in scan["voxels"].items():
            totals[name] = totals.get(name, 0) + voxels
    return {name: voxels for name, voxels in totals.items() if voxels < SEEN_VOXELS}


def first_of(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
