"""What a plan's named resampling function does to a scan: which orders, and which axis apart.

A plan names a function of nnunetv2.preprocessing.resampling and its keyword arguments. Those that nnU-Net ships and
can call from a plan are reproduced; every other name is refused, since its result cannot be known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from voxtile.chains.nnunet.label_resampling import resample_labels, resample_labels_torch
from voxtile.chains.nnunet.resampling import Rule, resample
from voxtile.errors import ModelError

Family = Literal["default", "torch", "none"]
FAMILIES: dict[str, Family] = {
    "resample_data_or_seg_to_shape": "default",
    "resample_torch_fornnunet": "torch",
    "no_resampling_hack": "none",
}
ANISOTROPY_THRESHOLD = 3.0
"""nnunetv2.configuration.ANISO_THRESHOLD: from this ratio of spacings the coarse axis is resampled apart."""
TORCH_ORDERS = {"linear": 1, "nearest-exact": 0}
IGNORED_KEYS = {"num_threads", "device"}
KNOWN_KEYS: dict[Family, set[str]] = {
    "default": {"is_seg", "order", "order_z", "force_separate_z", "separate_z_anisotropy_threshold"},
    "torch": {
        *("is_seg", "force_separate_z", "separate_z_anisotropy_threshold", "mode", "aniso_axis_mode"),
        "memefficient_seg_resampling",
    },
    "none": set(),
}


def coarse_axis(spacing: Sequence[float]) -> int | None:
    """The one axis with the largest spacing, or None where two or three axes share it."""
    found = np.flatnonzero(max(spacing) / np.asarray(spacing, float) == 1)
    return int(found[0]) if len(found) == 1 else None


@dataclass(frozen=True)
class ResamplingRule:
    """One named resampling function of a plan with its keyword arguments resolved."""

    family: Family = "default"
    order: int = 3
    order_z: int = 0
    force_separate_z: bool | None = False
    anisotropy_threshold: float = ANISOTROPY_THRESHOLD
    memory_efficient: bool = False

    @classmethod
    def from_plan(cls, name: str, kwargs: Mapping[str, Any], where: str, *, is_seg: bool = False) -> ResamplingRule:
        """From a plan's ``name`` and ``kwargs``; ``where`` is the plan's key, for the message.

        Raises ModelError for a function, argument, order or mode that is not reproduced here.
        """
        family = FAMILIES.get(name)
        if family is None:
            raise ModelError(f"{where}: expected one of {', '.join(FAMILIES)}, found {name!r}, which is unknown here")
        unknown = sorted(set(kwargs) - KNOWN_KEYS[family] - IGNORED_KEYS)
        if unknown:
            raise ModelError(f"{where}_kwargs: {name} takes no argument named {', '.join(map(repr, unknown))}")
        if family != "none" and bool(kwargs.get("is_seg", False)) != is_seg:
            raise ModelError(f"{where}_kwargs: expected is_seg {is_seg}, found {not is_seg}")
        orders = _torch_orders(kwargs, where) if family == "torch" else _default_orders(kwargs, where)
        return cls(
            family,
            *orders,
            kwargs.get("force_separate_z", None if family == "torch" else False),
            float(kwargs.get("separate_z_anisotropy_threshold", ANISOTROPY_THRESHOLD)),
            bool(kwargs.get("memefficient_seg_resampling", False)),
        )

    def separate_axis(self, current: Sequence[float], new: Sequence[float]) -> int | None:
        """The axis resampled apart for a change from ``current`` to ``new`` spacing (z, y, x), or None."""
        if self.force_separate_z is not None:
            return coarse_axis(current) if self.force_separate_z else None
        for spacing in (current, new):
            if max(spacing) / min(spacing) > self.anisotropy_threshold:
                return coarse_axis(spacing)
        return None

    def axis_orders(self, separate: int | None) -> tuple[int, int, int]:
        """The order along each axis; torch's function forgets its mode where no axis is apart, so it is linear."""
        order = 1 if self.family == "torch" and separate is None else self.order
        first, second, third = (self.order_z if axis == separate else order for axis in range(3))
        return first, second, third

    @property
    def rule(self) -> Rule:
        return "torch" if self.family == "torch" else "scipy"

    def apply(
        self, data: NDArray[Any], new_shape: Sequence[int], current: Sequence[float], new: Sequence[float]
    ) -> NDArray[Any]:
        """``data`` [channel, z, y, x] of spacing ``current`` on a grid of ``new_shape`` and spacing ``new``."""
        if self.family == "none":
            return data
        separate = self.separate_axis(current, new)
        order = 1 if self.family == "torch" and separate is None else self.order
        return resample(data, new_shape, order=order, separate_z_axis=separate, order_z=self.order_z, rule=self.rule)

    def apply_to_labels(
        self, seg: NDArray[Any], new_shape: Sequence[int], current: Sequence[float], new: Sequence[float]
    ) -> NDArray[Any]:
        """The same for label maps [channel, z, y, x]."""
        separate = self.separate_axis(current, new)
        if self.family == "none":
            return seg
        if self.family == "default":
            return resample_labels(seg, new_shape, order=self.order, separate_z_axis=separate, order_z=self.order_z)
        order = 1 if separate is None else self.order
        return resample_labels_torch(
            seg,
            new_shape,
            separate_z_axis=separate,
            order=order,
            order_z=self.order_z,
            memory_efficient=self.memory_efficient,
        )


def _default_orders(kwargs: Mapping[str, Any], where: str) -> tuple[int, int]:
    order, order_z = kwargs.get("order", 3), kwargs.get("order_z", 0)
    for key, value in (("order", order), ("order_z", order_z)):
        if value not in (0, 1, 3):
            raise ModelError(f"{where}_kwargs: expected {key} to be 0, 1 or 3, found {value!r}")
    return int(order), int(order_z)


def _torch_orders(kwargs: Mapping[str, Any], where: str) -> tuple[int, int]:
    found = []
    for key, default in (("mode", "linear"), ("aniso_axis_mode", "nearest-exact")):
        mode = kwargs.get(key, default)
        if mode not in TORCH_ORDERS:
            raise ModelError(f"{where}_kwargs: expected {key} to be {' or '.join(TORCH_ORDERS)}, found {mode!r}")
        found.append(TORCH_ORDERS[mode])
    return found[0], found[1]
