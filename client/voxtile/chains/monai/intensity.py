"""Intensity statistics of a whole scan: mean and standard deviation, or percentiles, without a copy of the scan.

Knows nothing of grids or of how values are sent.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.card import IntensityPercentile, IntensityZscore
from voxtile.errors import InputError
from voxtile.io.scaling import chunks

LOGGER = logging.getLogger(__name__)

HALF = 1 << 16
"""The number of values that 16 bits can hold."""

SHORTS = HALF // 2 + HALF
"""The number of values of 8 and 16 bit integers, signed and unsigned: from -32,768 to 65,535."""


def intensity_statistics(
    data: NDArray[Any], rule: IntensityZscore | IntensityPercentile, names: tuple[str, ...]
) -> NDArray[np.float32]:
    """Returns [channel, 2] float32: what to subtract and what to divide by.

    A channel that is zero or the same everywhere is divided by 1, as in MONAI's `NormalizeIntensity` and
    `ScaleIntensityRange`, if another channel of the scan is not.

    Args:
        data: [channel, x, y, z].
        rule: `zscore` gives mean and population standard deviation, computed in float64; `percentile` gives the lower
            percentile and how far the upper one lies above it, interpolated linearly as `numpy.percentile` does.
        names: what messages call each channel.

    Raises:
        InputError: every channel is zero or the same everywhere, or the voxels of one differ while the range that
            they are to be divided by is 0.
    """
    found = [_of_channel(channel, rule) for channel in data]
    flat = [number for number, (_, divide) in enumerate(found) if not np.float32(divide) > 0]
    if len(flat) == len(found):
        raise _without_contrast(data[0], rule, names[0])
    for number in flat:
        low, high = _ends(data[number], rule.mask == "nonzero")
        if isinstance(rule, IntensityPercentile) and rule.clip and low < high:
            raise _without_contrast(data[number], rule, names[number])  # MONAI does not clip there, and the model does
        LOGGER.warning("%s: nothing to normalise by; its values are not divided, as in MONAI", names[number])
        found[number] = found[number][0], 1.0
    return np.array(found, np.float32)


def _of_channel(values: NDArray[Any], rule: IntensityZscore | IntensityPercentile) -> tuple[float, float]:
    """Returns what to subtract and what to divide by; the latter is 0 where there is nothing to normalise by."""
    nonzero = rule.mask == "nonzero"
    lowest, highest = _ends(values, nonzero)
    if lowest == highest:
        return lowest, 0.0
    if isinstance(rule, IntensityZscore):
        return mean_and_deviation(values, nonzero)
    low, high = percentiles(values, (rule.lower, rule.upper), nonzero)
    return low, high - low


def _without_contrast(values: NDArray[Any], rule: IntensityZscore | IntensityPercentile, name: str) -> InputError:
    if rule.mask == "nonzero" and not any(part.any() for part in chunks(values)):
        return InputError(f"{name}: expected a scan with voxels other than 0, found none: nothing to normalise by")
    what = "standard deviation"
    if isinstance(rule, IntensityPercentile):
        what = f"range between the percentiles {rule.lower:g} and {rule.upper:g}"
    return InputError(f"{name}: expected a scan whose voxels differ, found a {what} of 0: nothing to normalise by")


def _ends(values: NDArray[Any], nonzero: bool) -> tuple[float, float]:
    """Returns the lowest and the highest of the values that count; 0 and 0 where none does."""
    parts = [(part.min(), part.max()) for part in _parts(values, nonzero) if part.size]
    return (float(min(low for low, _ in parts)), float(max(high for _, high in parts))) if parts else (0.0, 0.0)


def mean_and_deviation(values: NDArray[Any], nonzero: bool) -> tuple[float, float]:
    """Returns mean and population standard deviation, computed in float64 in two passes.

    8 and 16 bit integers are counted in a histogram instead.

    Args:
        values: of any shape; at least one has to count.
        nonzero: whether only values other than 0 count.
    """
    if _short(values):
        counts = _short_histogram(values, nonzero)
        levels = np.arange(SHORTS, dtype=np.float64) - HALF // 2
        mean = float(counts @ levels) / int(counts.sum())
        return mean, float(np.sqrt(counts @ (levels - mean) ** 2 / counts.sum()))
    total, squares, count = 0.0, 0.0, 0
    for part in _parts(values, nonzero):
        total += float(np.sum(part, dtype=np.float64))
        count += part.size
    for part in _parts(values, nonzero):
        apart = part.astype(np.float64) - total / count
        squares += float(np.dot(apart, apart))
    return total / count, float(np.sqrt(squares / count))


def percentiles(values: NDArray[Any], wanted: tuple[float, ...], nonzero: bool) -> list[float]:
    """Returns `numpy.percentile(values, wanted)` (linear) of `values` rounded to float32.

    Nothing is sorted or copied. 8 and 16 bit integers are counted in one histogram. Other types are counted by their
    upper 16 bits first and by their lower 16 bits next.

    Args:
        values: of any shape; at least one has to count.
        wanted: percentiles, 0 to 100.
        nonzero: whether only values other than 0 count.
    """
    places = [percent / 100 * (_count(values, nonzero) - 1) for percent in wanted]
    found = order_statistics(values, [rank for place in places for rank in (int(place), math.ceil(place))], nonzero)
    return [_between(found[int(place)], found[math.ceil(place)], place % 1) for place in places]


def order_statistics(values: NDArray[Any], ranks: Iterable[int], nonzero: bool) -> dict[int, float]:
    """Returns the values of `ranks`, counted from 0, the lowest, up; of `values` rounded to float32.

    Args:
        values: of any shape.
        ranks: below the number of values that count.
        nonzero: whether only values other than 0 count.
    """
    wanted = sorted(set(ranks))
    if not _short(values):
        upper = _upper_histogram(values, nonzero)
        return dict(zip(wanted, _values_at(values, nonzero, upper, wanted), strict=True))
    at = np.searchsorted(np.cumsum(_short_histogram(values, nonzero)), wanted, side="right") - HALF // 2
    return dict(zip(wanted, at.astype(float).tolist(), strict=True))


def _count(values: NDArray[Any], nonzero: bool) -> int:
    """Returns how many values count."""
    return sum(int(np.count_nonzero(part)) for part in chunks(values)) if nonzero else values.size


def _short(values: NDArray[Any]) -> bool:
    return values.dtype.kind in "iu" and values.dtype.itemsize <= 2


def _short_histogram(values: NDArray[Any], nonzero: bool) -> NDArray[np.int64]:
    """Returns [SHORTS] how often each value occurs, from -32,768 up."""
    counts = np.zeros(SHORTS, np.int64)
    for part in chunks(values):
        counts += np.bincount(part.astype(np.intp) + HALF // 2, minlength=SHORTS)
    if nonzero:
        counts[HALF // 2] = 0
    return counts


def _upper_histogram(values: NDArray[Any], nonzero: bool) -> NDArray[np.int64]:
    """Returns [HALF] how often each upper half of the ordered bits occurs."""
    counts = np.zeros(HALF, np.int64)
    for part in _parts(values, nonzero):
        counts += np.bincount((_ordered_bits(part) >> 16).astype(np.intp), minlength=HALF)
    return counts


def _between(low: float, high: float, share: float) -> float:
    return low + (high - low) * share


def _values_at(values: NDArray[Any], nonzero: bool, upper: NDArray[np.int64], ranks: list[int]) -> list[float]:
    """Returns the values of `ranks`, given the histogram `upper` of the upper halves of all values."""
    below_or_in = np.cumsum(upper)
    bins = [int(np.searchsorted(below_or_in, rank, side="right")) for rank in ranks]
    lower = {index: np.zeros(HALF, np.int64) for index in bins}
    for part in _parts(values, nonzero):
        bits = _ordered_bits(part)
        halves = bits >> 16
        for index, histogram in lower.items():
            hits = bits[halves == index]
            if hits.size:
                histogram += np.bincount(hits & 0xFFFF, minlength=HALF)
    result = []
    for rank, index in zip(ranks, bins, strict=True):
        before = int(below_or_in[index] - upper[index])
        low = int(np.searchsorted(np.cumsum(lower[index]), rank - before, side="right"))
        result.append(_value_of_bits(index << 16 | low))
    return result


def _ordered_bits(values: NDArray[Any]) -> NDArray[np.uint32]:
    """Returns bits that sort as the float32 values do: inverted for negative values, raised above those for others."""
    bits = values.astype(np.float32)
    flip = (bits.view(np.int32) >> 31).view(np.uint32) | np.uint32(1 << 31)  # all ones below zero, else the sign alone
    return bits.view(np.uint32) ^ flip


def _value_of_bits(ordered: int) -> float:
    bits = ordered & 0x7FFFFFFF if ordered >> 31 else ~ordered & 0xFFFFFFFF
    return float(np.array(bits, np.uint32).view(np.float32))


def _parts(values: NDArray[Any], nonzero: bool) -> Iterator[NDArray[Any]]:
    for part in chunks(values):
        yield part[part != 0] if nonzero else part
