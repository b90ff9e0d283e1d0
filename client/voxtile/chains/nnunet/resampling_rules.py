"""What a plan's resampling function does to a scan: which spline orders, and which axis is resampled separately.

A plan names a function of `nnunetv2.preprocessing.resampling` and its keyword arguments. Those that nnU-Net ships and
can call from a plan are reproduced. Every other name is refused, since its result cannot be known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from voxtile.chains.nnunet.axis_zoom import Rule
from voxtile.chains.nnunet.label_resampling import resample_labels, resample_labels_torch
from voxtile.chains.nnunet.resampling import resample
from voxtile.errors import ModelError

ANISOTROPY_THRESHOLD = 3.0
"""nnunetv2.configuration.ANISO_THRESHOLD: from this ratio of spacings the coarse axis is resampled separately."""

Order = Literal[0, 1, 3]
TorchMode = Literal["linear", "nearest-exact"]
TORCH_ORDERS: dict[TorchMode, int] = {"linear": 1, "nearest-exact": 0}


class _Arguments(BaseModel):
    """Keyword arguments of a resampling function; the last two change how it works and not what it returns."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_threads: Any = None
    device: Any = None


class _ScipyArguments(_Arguments):
    """Of `resample_data_or_seg_to_shape`."""

    is_seg: bool = False
    order: Order = 3
    order_z: Order = 0
    force_separate_z: bool | None = False
    separate_z_anisotropy_threshold: float = ANISOTROPY_THRESHOLD


class _TorchArguments(_Arguments):
    """Of `resample_torch_fornnunet`."""

    is_seg: bool = False
    force_separate_z: bool | None = None
    separate_z_anisotropy_threshold: float = ANISOTROPY_THRESHOLD
    mode: TorchMode = "linear"
    aniso_axis_mode: TorchMode = "nearest-exact"
    memefficient_seg_resampling: bool = False


FUNCTIONS: dict[str, type[_Arguments]] = {
    "resample_data_or_seg_to_shape": _ScipyArguments,
    "resample_torch_fornnunet": _TorchArguments,
    "no_resampling_hack": _Arguments,
}


def coarse_axis(spacing: Sequence[float]) -> int | None:
    """Returns the axis with the largest spacing, or None where two or three axes share it."""
    found = np.flatnonzero(max(spacing) / np.asarray(spacing, float) == 1)
    return int(found[0]) if len(found) == 1 else None


@dataclass(frozen=True)
class ResamplingRule:
    """A resampling function of a plan with its keyword arguments resolved.

    Attributes:
        family: nnU-Net's default function (scipy and scikit-image), its torch function, or no resampling at all.
        order: spline order along the axes.
        order_z: spline order along the axis that is resampled separately.
        force_separate_z: whether the coarse axis is resampled separately; None where the spacing decides.
        anisotropy_threshold: the ratio of spacings from which the coarse axis is resampled separately.
        memory_efficient: the torch function's own way to resample label maps.
    """

    family: Literal["default", "torch", "none"] = "default"
    order: int = 3
    order_z: int = 0
    force_separate_z: bool | None = False
    anisotropy_threshold: float = ANISOTROPY_THRESHOLD
    memory_efficient: bool = False

    @classmethod
    def from_plan(cls, name: str, arguments: Mapping[str, Any], where: str, *, is_seg: bool = False) -> ResamplingRule:
        """Returns the rule for a function of a plan.

        Args:
            name: the function.
            arguments: its keyword arguments.
            where: the plan's key of the function, for messages.
            is_seg: whether the function is used for label maps.

        Raises:
            ModelError: a function, argument, order or mode that is not reproduced here.
        """
        if name not in FUNCTIONS:
            raise ModelError(f"{where}: expected one of {', '.join(FUNCTIONS)}, found {name!r}, which is unknown here")
        try:
            given = FUNCTIONS[name].model_validate(arguments)
        except ValidationError as error:
            raise ModelError(_in_words(error, name, f"{where}_kwargs")) from None
        if isinstance(given, (_ScipyArguments, _TorchArguments)) and given.is_seg != is_seg:
            raise ModelError(f"{where}_kwargs.is_seg: expected {is_seg}, found {not is_seg}")
        return cls._of(given)

    @classmethod
    def _of(cls, given: _Arguments) -> ResamplingRule:
        if isinstance(given, _ScipyArguments):
            threshold = given.separate_z_anisotropy_threshold
            return cls("default", given.order, given.order_z, given.force_separate_z, threshold)
        if isinstance(given, _TorchArguments):
            return cls(
                "torch",
                TORCH_ORDERS[given.mode],
                TORCH_ORDERS[given.aniso_axis_mode],
                given.force_separate_z,
                given.separate_z_anisotropy_threshold,
                given.memefficient_seg_resampling,
            )
        return cls("none")

    def separate_axis(self, current: Sequence[float], new: Sequence[float]) -> int | None:
        """Returns the axis resampled separately for a change from `current` to `new` spacing (z, y, x), or None."""
        if self.force_separate_z is not None:
            return coarse_axis(current) if self.force_separate_z else None
        for spacing in (current, new):
            if max(spacing) / min(spacing) > self.anisotropy_threshold:
                return coarse_axis(spacing)
        return None

    def axis_orders(self, separate: int | None) -> tuple[int, int, int]:
        """Returns the order along each axis.

        The torch function ignores its mode where no axis is separate: it is linear then.
        """
        order = self._in_plane_order(separate)
        first, second, third = (self.order_z if axis == separate else order for axis in range(3))
        return first, second, third

    @property
    def rule(self) -> Rule:
        """Whose positions and weights the function uses."""
        return "torch" if self.family == "torch" else "scipy"

    def apply(
        self, data: NDArray[Any], new_shape: Sequence[int], current: Sequence[float], new: Sequence[float]
    ) -> NDArray[Any]:
        """Resamples a scan.

        Args:
            data: [channel, z, y, x].
            new_shape: voxels along z, y, x.
            current: spacing of `data` along z, y, x.
            new: spacing of the result.
        """
        if self.family == "none":
            return data
        separate = self.separate_axis(current, new)
        order = self._in_plane_order(separate)
        return resample(data, new_shape, order=order, separate_z_axis=separate, order_z=self.order_z, rule=self.rule)

    def apply_to_labels(
        self, seg: NDArray[Any], new_shape: Sequence[int], current: Sequence[float], new: Sequence[float]
    ) -> NDArray[Any]:
        """Resamples label maps `seg` [channel, z, y, x]; otherwise as `apply`."""
        separate = self.separate_axis(current, new)
        if self.family == "none":
            return seg
        if self.family == "default":
            return resample_labels(seg, new_shape, order=self.order, separate_z_axis=separate, order_z=self.order_z)
        return resample_labels_torch(
            seg,
            new_shape,
            separate_z_axis=separate,
            order=self._in_plane_order(separate),
            order_z=self.order_z,
            memory_efficient=self.memory_efficient,
        )

    def _in_plane_order(self, separate: int | None) -> int:
        return 1 if self.family == "torch" and separate is None else self.order


def _in_words(error: ValidationError, name: str, where: str) -> str:
    first = error.errors()[0]
    key = ".".join(str(step) for step in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{where}: {name} takes no argument named {key!r}"
    return f"{where}.{key}: {first['msg']}, found {first['input']!r}"
