"""Converts a prepared scan to the model's input type: exactly where it can, with a known rounding where it cannot.

No voxel ever takes the value that marks padding (`card.input.padding`, the type's lowest). Knows nothing of tiles.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.card import Card, IntensityFixed, IntensityRange
from voxtile.errors import InputError
from voxtile.io.scaling import chunks
from voxtile.tensor_types import NUMPY_TYPES

LOGGER = logging.getLogger(__name__)

LARGEST = {"int16": 32767.0, "fp16": 65000.0, "fp32": 3e38}
"""The largest magnitude sent in each type. It keeps clear of the type's lowest value, which marks padding."""

SCALED_TO = {"int16": 32000.0, "fp16": 32000.0, "fp32": 1e30}
"""What the largest magnitude of a scan becomes where its values have to be rescaled to fit the type."""

COARSE = 0.01
"""Rounding, in units of the normalised scan, above which a warning is logged: coarser than any training data."""


@dataclass(frozen=True, eq=False)
class Encoding:
    """sent = round(value · scale), clipped to `low` and `high`, in `dtype`.

    Attributes:
        dtype: the card's input type.
        scale: [channel] float64.
        low: [channel] float64, the lowest value sent; together with `high` it only cuts what the model's own rule cuts.
        high: [channel] float64, the highest value sent.
        exact: nothing is scaled or cut, only rounded to the type.
        max_rounding: the largest |value - sent / scale| of the scan, in the scan's own units.
        statistics: [channel, 2] float32, the model's input `intensity`, in units of the values sent, so that
            `(x - a) / b` stays what it was; None where the model takes none.
    """

    dtype: str
    scale: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    exact: bool
    max_rounding: float = 0.0
    statistics: NDArray[np.float32] | None = None

    def encode(self, values: NDArray[Any]) -> NDArray[Any]:
        """Returns `values` [channel, ...] of the prepared scan in `dtype`; no copy where they are in it already."""
        target = NUMPY_TYPES[self.dtype]
        if self.exact and values.dtype == target:
            return values
        result = np.empty(values.shape, target)
        for channel, (source, sent) in enumerate(zip(values, result, strict=True)):
            sent[...] = self._rounded(source, channel)
        return result

    def _rounded(self, values: NDArray[Any], channel: int) -> NDArray[Any]:
        """One channel, scaled, rounded and cut, in a type whose cast to `dtype` changes nothing."""
        scale, low, high = float(self.scale[channel]), float(self.low[channel]), float(self.high[channel])
        if values.dtype.kind in "iu" and scale == 1:
            return values if self.exact else np.clip(values, *_bounds_within(values.dtype, low, high))
        scaled = values.astype(np.float64) * scale if scale != 1 else values
        if self.dtype == "int16":
            scaled = np.rint(scaled)
        return scaled if self.exact else np.clip(scaled, low, high)


def choose_encoding(
    data: NDArray[Any], statistics: NDArray[np.float32] | None, card: Card, names: Sequence[str]
) -> Encoding:
    """Returns how a prepared scan is sent to the model of `card`.

    Whole numbers that fit are sent exactly. Values that do not fit are rescaled where the model normalises by
    statistics of the whole scan (which are rescaled alike), and cut where the model's own rule cuts them.

    Args:
        data: [channel, x, y, z] the prepared scan.
        statistics: [channel, 2] of the whole scan, in its own units; None where the model takes none.
        card: the model's card.
        names: what messages call each channel.

    Raises:
        InputError: values do not fit the input type, and neither rescaling nor cutting would leave the result as it is.
    """
    parts = [_for_channel(channel, card, number, names[number]) for number, channel in enumerate(data)]
    scale, low, high = (np.array(column, np.float64) for column in list(zip(*parts, strict=True))[:3])
    exact = all(fits for *_, fits in parts)
    sent = None if statistics is None else (statistics * scale[:, None]).astype(np.float32)
    encoding = Encoding(card.input.dtype, scale, low, high, exact, statistics=sent)
    encoding = replace(encoding, max_rounding=_largest_rounding(data, encoding))
    if statistics is not None:
        _warn_if_coarse(encoding.max_rounding, statistics)
    return encoding


def _for_channel(values: NDArray[Any], card: Card, channel: int, name: str) -> tuple[float, float, float, bool]:
    """Returns scale, low and high of one channel, and whether it is sent as it is."""
    dtype, limit = card.input.dtype, LARGEST[card.input.dtype]
    low, high = min_max(values)
    if max(-low, high) <= limit and not (card.whole_scan_intensity and dtype == "int16" and not whole_numbers(values)):
        return 1.0, -limit, limit, True
    if card.whole_scan_intensity:
        return SCALED_TO[dtype] / max(-low, high), -limit, limit, False
    bounds = _harmless_bounds(card, channel)
    if bounds is None or (low < -limit and bounds[0] < -limit) or (high > limit and bounds[1] > limit):
        raise InputError(
            f"{name}: expected values within ±{limit:g}, which this model's input type {dtype} can hold, "
            f"found {low:g} to {high:g}; scale the scan, or build the model with input type fp32"
        )
    return 1.0, max(bounds[0], -limit), min(bounds[1], limit), False


def _harmless_bounds(card: Card, channel: int) -> tuple[float, float] | None:
    """The values beyond which the model's own rule cuts, rounded outwards to whole numbers."""
    rule = card.intensity
    if isinstance(rule, IntensityRange) and rule.clip:
        return float(np.floor(rule.a_min)), float(np.ceil(rule.a_max))
    if isinstance(rule, IntensityFixed) and (rule.lower is not None or rule.upper is not None):
        low = -np.inf if rule.lower is None else np.floor(rule.lower[channel])
        high = np.inf if rule.upper is None else np.ceil(rule.upper[channel])
        return float(low), float(high)
    return None


def min_max(values: NDArray[Any]) -> tuple[float, float]:
    """Returns the lowest and the highest of `values` (any shape, not empty)."""
    lows, highs = zip(*((part.min(), part.max()) for part in chunks(values)), strict=True)
    return float(min(lows)), float(max(highs))


def whole_numbers(values: NDArray[Any]) -> bool:
    """Returns whether all of `values` are whole numbers."""
    return values.dtype.kind in "iu" or all(bool((np.rint(part) == part).all()) for part in chunks(values))


def _largest_rounding(data: NDArray[Any], encoding: Encoding) -> float:
    """Returns the largest rounding in the scan's own units, of all values that are not cut on purpose."""
    return max(max(_roundings(values, encoding, channel), default=0.0) for channel, values in enumerate(data))


def _roundings(values: NDArray[Any], encoding: Encoding, channel: int) -> Iterator[float]:
    target, scale = NUMPY_TYPES[encoding.dtype], float(encoding.scale[channel])
    if scale == 1 and (target == np.float32 or (target == np.int16 and values.dtype.kind in "iu")):
        return
    for part in chunks(values):
        wanted = np.clip(part.astype(np.float64) * scale, encoding.low[channel], encoding.high[channel])
        sent = (np.rint(wanted) if target == np.int16 else wanted).astype(target)
        yield float(np.abs(wanted - sent).max()) / scale


def _bounds_within(dtype: np.dtype[Any], low: float, high: float) -> tuple[int, int]:
    """Returns the bounds as numbers of an integer type, so that clipping keeps the type."""
    limits = np.iinfo(dtype)
    return min(max(math.ceil(low), limits.min), limits.max), max(min(math.floor(high), limits.max), limits.min)


def _warn_if_coarse(rounding: float, statistics: NDArray[np.float32]) -> None:
    """Logs where rounding is coarse for the network: a few extreme voxels can take up the type's whole range."""
    for channel, divide in enumerate(statistics[:, 1].tolist()):
        if rounding > COARSE * divide:
            LOGGER.warning("channel %d: values are rounded by up to %.3g to be sent", channel + 1, rounding)
