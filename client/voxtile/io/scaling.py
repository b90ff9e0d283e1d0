"""Converts stored numbers to the values that they stand for, in the smallest type that holds them exactly.

Works in chunks, so that a scan of 16 bit integers never becomes float64 as a whole. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHUNK = 1 << 18
"""Values worked on at a time: 2 MiB in float64, which stays in the cache."""


def apply_scaling(raw: NDArray[Any], slope: float | None, inter: float | None) -> NDArray[Any]:
    """Returns `raw · slope + inter`, with the shape and the memory order of `raw`.

    Integers stay integers where slope and intercept are whole numbers and the result fits 32 bits: 8 and 16 bit types
    as they are, wider ones as int16 or int32. Everything else is computed in float64 and rounded to float32.

    Args:
        raw: real numbers in native byte order.
        slope: None for 1.
        inter: None for 0.
    """
    slope, inter = (1.0 if slope is None else slope), (inter or 0.0)
    if raw.dtype.kind in "iu" and slope.is_integer() and inter.is_integer():
        whole = _whole(raw, int(slope), int(inter))
        if whole is not None:
            return whole
    if raw.dtype == np.float32 and (slope, inter) == (1.0, 0.0):
        result: NDArray[Any] = raw
    else:
        result = _scaled(raw, slope, inter)
    return result


def flat(values: NDArray[Any]) -> NDArray[Any]:
    """Returns [n] the values in memory order; a view where the array is in C or Fortran order."""
    return values.reshape(-1, order="F" if values.flags.f_contiguous else "C")


def chunks(values: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yields `values` in pieces [≤ CHUNK], whatever its strides, each value once and in a fixed order.

    Axes are read as they lie in memory, so that a view with flipped or permuted axes is not copied. Of other views, one
    chunk at a time is copied.
    """
    forward = values[tuple(slice(None, None, -1 if stride < 0 else 1) for stride in values.strides)]
    ordered = forward.transpose(memory_order(forward))
    if ordered.flags.c_contiguous:
        line = ordered.reshape(-1)
        for first in range(0, line.size, CHUNK):
            yield line[first : first + CHUNK]
        return
    plane = ordered[0].size
    if plane > CHUNK:
        for part in ordered:
            yield from chunks(part)
        return
    step = CHUNK // plane
    for first in range(0, len(ordered), step):
        yield ordered[first : first + step].reshape(-1)


def memory_order(values: NDArray[Any]) -> tuple[int, ...]:
    """Returns the axes of `values` from the slowest in memory to the fastest."""
    return tuple(sorted(range(values.ndim), key=lambda axis: -abs(values.strides[axis])))


def _whole(raw: NDArray[Any], slope: int, inter: int) -> NDArray[Any] | None:
    """Integers scaled by whole numbers, or None where they would not fit 32 bits."""
    if (slope, inter) == (1, 0) and raw.dtype.itemsize <= 2:
        return raw
    low, high = sorted(int(value) * slope + inter for value in (raw.min(), raw.max()))
    fitting = (kind for kind in (np.int16, np.int32) if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max)
    dtype = next(fitting, None)
    if dtype is None:
        return None
    if raw.dtype == dtype and (slope, inter) == (1, 0):
        return raw
    result = np.empty_like(raw, dtype)
    source, target = flat(raw), flat(result)
    for first in range(0, source.size, CHUNK):
        target[first : first + CHUNK] = _times(source[first : first + CHUNK], slope, inter)
    return result


def _times(part: NDArray[Any], slope: int, inter: int) -> NDArray[Any]:
    """Exact: a result that fits 32 bits is computed in 64, and 64 bit numbers with Python's own integers."""
    if (slope, inter) == (1, 0):
        return part
    return part.astype(object if part.dtype.itemsize == 8 else np.int64) * slope + inter


def _scaled(raw: NDArray[Any], slope: float, inter: float) -> NDArray[np.float32]:
    result = np.empty_like(raw, np.float32)
    source, target = flat(raw), flat(result)
    with np.errstate(all="ignore"):  # what overflows becomes infinite, which is looked for later
        for first in range(0, source.size, CHUNK):
            part = source[first : first + CHUNK].astype(np.float64)
            if slope != 1:
                part *= slope
            if inter != 0:
                part += inter
            target[first : first + CHUNK] = part
    return result
