"""Moves the planes of a scan that a tilted gantry sheared, each within itself, so that they lie behind each other."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def straightened(raw: NDArray[Any], shifts: NDArray[np.float64], size: tuple[int, int], outside: float) -> NDArray[Any]:
    """Returns [k, row, column] whose value at (row, column) of plane k is that of `raw` at (row - dj, column - di).

    Between pixels, values run along straight lines; integers are rounded.

    Args:
        raw: [k, row, column].
        shifts: [k, 2] di and dj of each plane, in columns and rows; 0 or above.
        size: columns and rows of the result, in which each plane lies within it.
        outside: the value where no pixel of a plane lies.
    """
    result = np.empty((len(raw), size[1], size[0]), raw.dtype)
    for k, (di, dj) in enumerate(shifts):
        plane = _moved(_moved(raw[k].astype(np.float64), dj, size[1], outside).T, di, size[0], outside).T
        result[k] = np.rint(plane) if raw.dtype.kind in "iu" else plane
    return result


def _moved(plane: NDArray[np.float64], by: float, count: int, outside: float) -> NDArray[np.float64]:
    """`count` rows in which the rows of a plane lie further down by a number of rows, which may be no whole one."""
    whole = int(np.floor(by))
    share = by - whole
    near = _laid(plane, whole, count, outside)
    return near if share == 0 else near * (1 - share) + _laid(plane, whole + 1, count, outside) * share


def _laid(plane: NDArray[np.float64], at: int, count: int, outside: float) -> NDArray[np.float64]:
    result = np.full((count, plane.shape[1]), outside)
    result[at : at + len(plane)] = plane
    return result
