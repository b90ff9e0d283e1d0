"""Paints the labels of one network after the other into one mask. Knows nothing of scans or grids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

UINT8 = 255


def empty_mask(shape: Sequence[int], most: int) -> NDArray[Any]:
    """Returns background everywhere, in the smallest type that holds labels up to `most`."""
    return np.zeros(shape, np.uint8 if most <= UINT8 else np.uint16)


def paint(mask: NDArray[Any], labels: NDArray[Any], values: Mapping[int, int]) -> None:
    """Paints `labels` over `mask`, both [x, y, z]: where they are background, the mask stays as it is.

    Args:
        mask: is changed.
        labels: of one network.
        values: what each of its labels is in the mask; every other one is background.
    """
    table = np.zeros(int(np.iinfo(labels.dtype).max) + 1, mask.dtype)
    for label, value in values.items():
        if label < len(table):
            table[label] = value
    painted = table[labels]
    np.copyto(mask, painted, where=painted != 0)
