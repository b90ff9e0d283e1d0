"""The figures of a row: the spread of its seconds, and how far its mask agrees with another."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile_build.evaluation.metrics import dice

Rows = list[dict[str, Any]]


def spread(seconds: Sequence[float], baseline: float) -> dict[str, Any]:
    """Returns median, lowest and highest of some seconds, their number, and how many times faster than `baseline`."""
    middle = median(seconds)
    return {
        "seconds": round(middle, 5),
        "ratio": round(baseline / middle, 3),
        "seconds_low": round(min(seconds), 5),
        "seconds_high": round(max(seconds), 5),
        "runs": len(seconds),
    }


def agreement(reference: NDArray[Any], found: NDArray[Any]) -> dict[str, float]:
    """Returns `dice_min`, the smallest Dice of a label in either mask, and `changed_fraction` of all voxels.

    Background (0) has no Dice; without any other label `dice_min` is 1.

    Raises:
        ValueError: the masks have different shapes.
    """
    if reference.shape != found.shape:
        raise ValueError(f"expected a mask of shape {reference.shape}, found {found.shape}")
    labels = {*np.unique(reference).tolist(), *np.unique(found).tolist()} - {0}
    smallest = min((dice(reference == label, found == label) or 0.0 for label in labels), default=1.0)
    return {"dice_min": round(smallest, 5), "changed_fraction": float(f"{np.mean(reference != found):.4g}")}


def only(mask: NDArray[Any], label: int | None) -> NDArray[Any]:
    """Returns `mask` with every label but `label` made background; `mask` itself if `label` is None."""
    return mask if label is None else np.where(mask == label, mask, 0)
