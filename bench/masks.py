"""How far two masks agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def dice_min(reference: NDArray[Any], found: NDArray[Any], background: int = 0) -> float:
    """The smallest Dice, 2 |A ∩ B| / (|A| + |B|), of the labels in either mask other than `background`; 1 for none."""
    values = set(np.unique(reference).tolist()) | set(np.unique(found).tolist())
    return min((_dice(reference == value, found == value) for value in values - {background}), default=1.0)


def changed_fraction(reference: NDArray[Any], found: NDArray[Any]) -> float:
    """The share of voxels that hold another label. Raises ValueError for masks of different shapes."""
    if reference.shape != found.shape:
        raise ValueError(f"expected a mask of shape {reference.shape}, found {found.shape}")
    return float(np.mean(reference != found))


def only(mask: NDArray[Any], label: int | None) -> NDArray[Any]:
    """`mask` with everything but `label` made background; as it is where `label` is None."""
    return mask if label is None else np.where(mask == label, mask, 0)


def single_path(mask: Path) -> Path:
    """Where the mask of one class alone, decided at a probability of one half, lies beside the whole mask."""
    return mask.with_name(f"single-{mask.name}")


def _dice(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    return 2 * int((one & other).sum()) / (int(one.sum()) + int(other.sum()))
