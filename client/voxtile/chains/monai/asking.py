"""Which numbers the later steps of a chain compare a value with: there, a last bit decides which way a voxel goes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from voxtile.transforms.base import Transform, selection
from voxtile.transforms.preprocessing import (
    MOVING,
    CropForeground,
    MaskIntensity,
    NormalizeIntensity,
    ScaleIntensityRange,
    ThresholdIntensity,
)


def asked_numbers(later: Sequence[Transform], ends_with_zeros: bool = False) -> tuple[float, ...] | None:
    """Returns the numbers, each once and 0 among them; None where they cannot be known before the scan is.

    Args:
        later: the steps that follow, in order.
        ends_with_zeros: whether what follows them asks which values are 0.
    """
    scale, shift = 1.0, 0.0  # the value here is scale times a later one, plus shift
    numbers = [0.0]
    for step in later:
        asked = _asked(step)
        if asked is not None:
            numbers.append(scale * asked + shift)
        if isinstance(step, ScaleIntensityRange):
            low, high = step.b_min or 0.0, 1.0 if step.b_max is None else step.b_max
            slope = (step.a_max - step.a_min) / (high - low) if high != low else math.nan
            scale, shift = scale * slope, scale * (step.a_min - slope * low) + shift
        elif not isinstance(step, (*MOVING, MaskIntensity, ThresholdIntensity)):
            scale = math.nan
    if ends_with_zeros:
        numbers.append(shift if math.isfinite(scale) else math.nan)
    return tuple(dict.fromkeys(numbers)) if all(map(math.isfinite, numbers)) else None


def _asked(step: Transform) -> float | None:
    """The number that a step itself asks for."""
    if isinstance(step, (CropForeground, MaskIntensity)):
        return selection(step.select_fn).number
    if isinstance(step, ThresholdIntensity):
        return step.threshold
    return 0.0 if isinstance(step, NormalizeIntensity) and step.nonzero else None
