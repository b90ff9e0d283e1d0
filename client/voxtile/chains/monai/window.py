"""Crops and pads: which voxels of an axis a step takes, what it adds, and where the scores go back to.

Sizes are those of MONAI 1.6 (`SpatialPad`, `DivisiblePad`, `CenterSpatialCrop`, `ResizeWithPadOrCrop`,
`CropForeground`). Knows nothing of spacings or orientations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.errors import InputError
from voxtile.transforms.base import Transform, per_axis, selection
from voxtile.transforms.preprocessing import (
    CenterSpatialCrop,
    CropForeground,
    DivisiblePad,
    ResizeWithPadOrCrop,
    SpatialPad,
)

NUMPY_MODES = {"replicate": "edge", "circular": "wrap"}
"""PyTorch's names of ways to pad that NumPy calls otherwise."""


@dataclass(frozen=True)
class Cut:
    """What one step does to one axis: target voxel i lies on source voxel i + offset, which may be outside."""

    offset: int
    target: int


@dataclass(frozen=True)
class Window:
    """What some cuts in turn do to one axis.

    Attributes:
        source: voxels before.
        target: voxels after.
        offset: target voxel i lies on source voxel i + offset.
        low: the first source voxel whose scores come back; every cut kept it.
        high: one past the last such voxel. All others get scores of 0.
    """

    source: int
    target: int
    offset: int
    low: int
    high: int

    @classmethod
    def whole(cls, size: int) -> Window:
        """Returns the window that takes an axis as it is."""
        return cls(size, size, 0, 0, size)

    @property
    def identity(self) -> bool:
        """Whether nothing is cut and nothing is added."""
        return self == Window.whole(self.source)

    @property
    def mirrored(self) -> Window:
        """The same window with both axes flipped."""
        offset = self.source - self.target - self.offset
        return replace(self, offset=offset, low=self.source - self.high, high=self.source - self.low)

    def then(self, cut: Cut) -> Window:
        """Returns this window with another cut after it."""
        offset = self.offset + cut.offset
        low, high = max(self.low, offset), min(self.high, offset + cut.target)
        return Window(self.source, cut.target, offset, low, max(high, low))

    @property
    def place(self) -> slice:
        """The source voxels that get scores."""
        return slice(self.low, self.high)

    @property
    def taken(self) -> slice:
        """The target voxels that these scores are of."""
        return slice(self.low - self.offset, self.high - self.offset)


def place(windows: Sequence[Window]) -> tuple[Any, ...]:
    """Returns the source voxels that get scores, along each axis."""
    return tuple(window.place for window in windows)


def taken(windows: Sequence[Window]) -> tuple[Any, ...]:
    """Returns the target voxels that these scores are of, along each axis."""
    return tuple(window.taken for window in windows)


def spread(values: NDArray[Any], windows: Sequence[Window], outside: Any = 0) -> NDArray[Any]:
    """Returns `values` [..., *target] brought back to [..., *source], `outside` where nothing was taken."""
    if all(window.identity for window in windows):
        return values
    result = np.full((*values.shape[:-3], *(window.source for window in windows)), outside, values.dtype)
    result[(..., *place(windows))] = values[(..., *taken(windows))]
    return result


def cuts_of(step: Transform, data: NDArray[Any], name: str) -> list[tuple[Cut, ...]]:
    """Returns what `step` does to [channel, x, y, z], in turn; nothing if it is no crop and no pad.

    Raises:
        InputError: there is no foreground to crop to.
    """
    shape = data.shape[1:]
    if isinstance(step, CropForeground):
        return [_foreground(step, data, name)]
    if isinstance(step, SpatialPad):
        return [_padded(shape, per_axis(step.spatial_size), step.method)]
    if isinstance(step, DivisiblePad):
        return [_padded(shape, _multiples(shape, step.k), step.method)]
    if isinstance(step, CenterSpatialCrop):
        return [_centre(shape, per_axis(step.roi_size))]
    if isinstance(step, ResizeWithPadOrCrop):
        first = _centre(shape, per_axis(step.spatial_size))
        return [first, _padded([cut.target for cut in first], per_axis(step.spatial_size), step.method)]
    return []


def cut(data: NDArray[Any], cuts: Sequence[Cut], mode: str, value: float) -> NDArray[Any]:
    """Returns `data` [channel, x, y, z] cropped and padded; a view where nothing is padded."""
    sizes = data.shape[1:]
    inside = [slice(max(c.offset, 0), min(c.offset + c.target, n)) for c, n in zip(cuts, sizes, strict=True)]
    width = [(max(-c.offset, 0), max(c.offset + c.target - n, 0)) for c, n in zip(cuts, sizes, strict=True)]
    kept: NDArray[Any] = data[(slice(None), *inside)]
    if not any(before or after for before, after in width):
        return kept
    given = {"constant_values": np.float32(value)} if mode == "constant" else {}
    kept = kept if value == 0 or mode != "constant" else kept.astype(np.float32)
    padded: NDArray[Any] = np.pad(kept, [(0, 0), *width], NUMPY_MODES.get(mode, mode), **given)  # type: ignore[call-overload]
    return padded


def _padded(shape: Sequence[int], wanted: Sequence[int], method: str) -> tuple[Cut, ...]:
    widths = [max(size - n, 0) if size > 0 else 0 for size, n in zip(wanted, shape, strict=True)]
    return tuple(
        Cut(-(width // 2) if method == "symmetric" else 0, n + width) for width, n in zip(widths, shape, strict=True)
    )


def _multiples(shape: Sequence[int], k: Any) -> list[int]:
    return [math.ceil(n / step) * step if step > 0 else n for n, step in zip(shape, per_axis(k), strict=True)]


def _centre(shape: Sequence[int], wanted: Sequence[int]) -> tuple[Cut, ...]:
    cuts = []
    for n, roi in zip(shape, wanted, strict=True):
        size = roi if roi > 0 else n
        start = max(n // 2 - size // 2, 0)
        cuts.append(Cut(start, min(start + size, n) - start))
    return tuple(cuts)


def _foreground(step: CropForeground, data: NDArray[Any], name: str) -> tuple[Cut, ...]:
    rule = selection(step.select_fn)
    chosen = np.zeros(data.shape[1:], bool)
    for channel in step.channel_indices or range(len(data)):
        chosen |= rule(data[channel])
    boxes = []
    for axis, margin in enumerate(per_axis(step.margin)):
        hits = np.flatnonzero(chosen.any(axis=tuple(other for other in range(3) if other != axis)))
        if not len(hits):
            raise InputError(
                f"{name}: expected foreground, voxels with {step.select_fn}, found none: nothing is left to segment"
            )
        low, high = int(hits[0]) - margin, int(hits[-1]) + margin + 1
        boxes.append((max(low, 0), min(high, chosen.shape[axis])) if step.allow_smaller else (low, high))
    sizes = _multiples([high - low for low, high in boxes], step.k_divisible)
    return tuple(Cut(low - (size - (high - low)) // 2, size) for (low, high), size in zip(boxes, sizes, strict=True))
