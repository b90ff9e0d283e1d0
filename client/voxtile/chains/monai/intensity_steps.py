"""The steps of a chain that change values and move none, as MONAI 1.6 computes them, in float32 and in its order.

Statistics are summed in float64, where MONAI sums in float32. Knows nothing of grids or of how values are sent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.chains.monai.encoding import min_max
from voxtile.chains.monai.intensity import mean_and_deviation, order_statistics
from voxtile.transforms.base import Transform, selection
from voxtile.transforms.preprocessing import (
    ClipIntensityPercentiles,
    MaskIntensity,
    NormalizeIntensity,
    ScaleIntensity,
    ScaleIntensityRange,
    ScaleIntensityRangePercentiles,
    ThresholdIntensity,
)

Values = NDArray[np.float32]

MOST_BY_TORCH = 1_000_000
"""Values up to which MONAI takes percentiles by PyTorch, which counts ranks in float32; beyond, by NumPy."""


def change_values(step: Transform, data: Values) -> None:
    """Applies `step` to `data` [channel, x, y, z], in place.

    Raises:
        TypeError: it is another kind of step.
    """
    if isinstance(step, NormalizeIntensity):
        _normalise(step, data)
    elif isinstance(step, ThresholdIntensity):
        kept = data > np.float32(step.threshold) if step.above else data < np.float32(step.threshold)
        np.copyto(data, np.float32(step.cval), where=~kept)
    elif isinstance(step, MaskIntensity):
        np.multiply(data, selection(step.select_fn)(data), out=data)
    elif isinstance(step, ScaleIntensityRange):
        _scale_range(data, step.a_min, step.a_max, step.b_min, step.b_max, step.clip)
    elif isinstance(step, ScaleIntensity | ScaleIntensityRangePercentiles | ClipIntensityPercentiles):
        for values in data if step.channel_wise else [data]:
            SCALING[type(step)](step, values)
    else:
        raise TypeError(f"{type(step).__name__} is no step that changes values alone")


def _normalise(step: NormalizeIntensity, data: Values) -> None:
    given = [_numbers(numbers, len(data)) for numbers in (step.subtrahend, step.divisor)]
    whole = None if step.channel_wise or all(given) else _statistics(data, step.nonzero)
    for channel, values in enumerate(data):
        found = whole or ((0.0, 1.0) if all(given) else _statistics(values, step.nonzero))
        subtract, divide = (
            np.float32(numbers[channel] if numbers else own) for numbers, own in zip(given, found, strict=True)
        )
        divide = divide if divide != 0 else np.float32(1)
        where = values != 0 if step.nonzero else np.True_
        np.subtract(values, subtract, out=values, where=where)
        np.divide(values, divide, out=values, where=where)


def _numbers(given: float | tuple[float, ...] | None, channels: int) -> tuple[float, ...]:
    """One number a channel; none where they are to be taken from the scan."""
    if given is None:
        return ()
    return given if isinstance(given, tuple) else (given,) * channels


def _statistics(values: Values, nonzero: bool) -> tuple[float, float]:
    """Mean and standard deviation; 0 and 1 where no value counts, which leaves them as they are."""
    return mean_and_deviation(values, nonzero) if values.any() or not nonzero else (0.0, 1.0)


def _scale_range(values: Values, a_min: Any, a_max: Any, b_min: float | None, b_max: float | None, clip: bool) -> None:
    """MONAI's ScaleIntensityRange. Where a_min and a_max are equal, it neither divides nor clips."""
    values -= np.float32(a_min)
    if a_max == a_min:
        values += np.float32(b_min or 0)
        return
    values /= np.float32(a_max - a_min)
    if b_min is None or b_max is None:
        return
    values *= np.float32(b_max - b_min)
    values += np.float32(b_min)
    if clip:
        np.clip(values, np.float32(b_min), np.float32(b_max), out=values)


def _scale(step: ScaleIntensity, values: Values) -> None:
    if step.minv is None or step.maxv is None:
        values *= np.float32(1 + (step.factor or 0.0))
        return
    low, high = map(np.float32, min_max(values))
    if low == high:
        values *= np.float32(step.minv)
        return
    values -= low
    values /= high - low
    values *= np.float32(step.maxv - step.minv)
    values += np.float32(step.minv)


def _scale_percentiles(step: ScaleIntensityRangePercentiles, values: Values) -> None:
    low, high = monai_percentiles(values, (step.lower, step.upper))
    b_min, b_max = step.b_min, step.b_max
    if step.relative and b_min is not None and b_max is not None:
        b_min, b_max = ((b_max - b_min) * (percent / 100.0) + b_min for percent in (step.lower, step.upper))
    _scale_range(values, low, high, b_min, b_max, step.clip)


def _clip_percentiles(step: ClipIntensityPercentiles, values: Values) -> None:
    lower, upper = 0.0 if step.lower is None else step.lower, 100.0 if step.upper is None else step.upper
    np.clip(values, *monai_percentiles(values, (lower, upper)), out=values)


SCALING: dict[type[Transform], Callable[[Any, Values], None]] = {
    ScaleIntensity: _scale,
    ScaleIntensityRangePercentiles: _scale_percentiles,
    ClipIntensityPercentiles: _clip_percentiles,
}
"""Steps that can be applied to each channel alone or to all together."""


def monai_percentiles(values: NDArray[Any], wanted: tuple[float, ...]) -> list[np.float32]:
    """Returns percentiles as MONAI takes them: by `torch.quantile`, of more than a million values by NumPy.

    Args:
        values: of any shape, not empty.
        wanted: percentiles, 0 to 100.
    """
    by_torch = values.size <= MOST_BY_TORCH
    kind: Any = np.float32 if by_torch else np.float64
    places = [kind(percent / 100) * kind(values.size - 1) for percent in wanted]
    found = order_statistics(values, [rank for place in places for rank in (int(place), math.ceil(place))], False)
    return [
        _between(kind(found[int(place)]), kind(found[math.ceil(place)]), place - kind(int(place))) for place in places
    ]


def _between(low: Any, high: Any, share: Any) -> np.float32:
    one = type(share)(1)
    return np.float32(low + share * (high - low) if share < 0.5 else high - (high - low) * (one - share))
