"""The steps of a chain of pre-processing that run in the graph: each value follows from the value before it alone.

The operations and their order are MONAI's. Knows nothing of statistics of a scan.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from voxtile.transforms.base import Transform, selection
from voxtile.transforms.preprocessing import (
    MaskIntensity,
    NormalizeIntensity,
    ScaleIntensity,
    ScaleIntensityRange,
    ThresholdIntensity,
)
from voxtile_build.spec.spec import Spec


def pointwise(step: Transform, spec: Spec) -> nn.Module:
    """The module for a step, from values [batch, channel, *spatial] to the same shape.

    Raises:
        TypeError: the step looks at more than one value.
    """
    if isinstance(step, ScaleIntensityRange):
        return ScaledRange(step)
    if isinstance(step, NormalizeIntensity):
        return Normalised(step, len(spec.input.channels), len(spec.tiling.roi_size))
    if isinstance(step, ScaleIntensity):
        return Factor(1 + (step.factor or 0.0))
    if isinstance(step, ThresholdIntensity):
        return Threshold(step)
    if isinstance(step, MaskIntensity):
        return Mask(step)
    raise TypeError(f"{type(step).__name__} looks at more than one value")


class ScaledRange(nn.Module):
    """MONAI's ScaleIntensityRange."""

    def __init__(self, step: ScaleIntensityRange) -> None:
        super().__init__()
        self.step = step

    def forward(self, values: Tensor) -> Tensor:
        step = self.step
        values = (values - step.a_min) / (step.a_max - step.a_min)
        if step.b_min is None or step.b_max is None:
            return values
        values = values * (step.b_max - step.b_min) + step.b_min
        return values.clamp(step.b_min, step.b_max) if step.clip else values


class Normalised(nn.Module):
    """MONAI's NormalizeIntensity with numbers of its own, one for each channel."""

    subtrahend: Tensor
    divisor: Tensor

    def __init__(self, step: NormalizeIntensity, channels: int, axes: int) -> None:
        super().__init__()
        self.nonzero = step.nonzero
        for name in ("subtrahend", "divisor"):
            given = getattr(step, name)
            numbers = torch.tensor(given if isinstance(given, tuple) else (given,) * channels, dtype=torch.float32)
            self.register_buffer(name, numbers.reshape(1, -1, *(1,) * axes))

    def forward(self, values: Tensor) -> Tensor:
        normal = (values - self.subtrahend) / self.divisor
        return torch.where(values == 0, 0.0, normal) if self.nonzero else normal


class Factor(nn.Module):
    """MONAI's ScaleIntensity with a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, values: Tensor) -> Tensor:
        return values * self.factor


class Threshold(nn.Module):
    """MONAI's ThresholdIntensity."""

    def __init__(self, step: ThresholdIntensity) -> None:
        super().__init__()
        self.step = step

    def forward(self, values: Tensor) -> Tensor:
        step = self.step
        kept = values > step.threshold if step.above else values < step.threshold
        return torch.where(kept, values, step.cval)


class Mask(nn.Module):
    """MONAI's MaskIntensity with a rule of the image itself."""

    def __init__(self, step: MaskIntensity) -> None:
        super().__init__()
        self.selected = selection(step.select_fn)

    def forward(self, values: Tensor) -> Tensor:
        return torch.where(self.selected(values), values, 0.0)
