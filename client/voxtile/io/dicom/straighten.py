"""Moves the planes of a scan that a tilted gantry sheared, each within itself, so that they lie behind each other."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def straightened(raw: NDArray[Any], shifts: NDArray[np.float64]) -> NDArray[Any]:
    """Returns [k, row, column] whose value at (row, column) of plane k is that of `raw` at (row - dj, column - di).

    Between pixels, values run along straight lines; integers are rounded. Beyond the edge lies the scan's lowest value.

    Args:
        raw: [k, row, column].
        shifts: [k, 2] di and dj of each plane, in columns and rows.
    """
    lowest = raw.min()
    result = np.empty_like(raw)
    for k, (di, dj) in enumerate(shifts):
        plane = _moved(_moved(raw[k].astype(np.float64), dj, float(lowest)).T, di, float(lowest)).T
        result[k] = np.rint(plane) if raw.dtype.kind in "iu" else plane
    return result


def _moved(plane: NDArray[np.float64], by: float, fill: float) -> NDArray[np.float64]:
    """Moves the rows of a plane down by a number of rows, which may be no whole one."""
    whole = int(np.floor(by))
    share = by - whole
    near, far = _rolled(plane, whole, fill), _rolled(plane, whole + 1, fill)
    return near if share == 0 else near * (1 - share) + far * share


def _rolled(plane: NDArray[np.float64], by: int, fill: float) -> NDArray[np.float64]:
    result = np.full_like(plane, fill)
    count = len(plane) - abs(by)
    if count > 0:
        result[max(by, 0) : max(by, 0) + count] = plane[max(-by, 0) : max(-by, 0) + count]
    return result
