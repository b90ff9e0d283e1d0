"""Chooses the windows that a scan is looked at through: which value is black, and which is white.

Knows nothing of pages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.io.dicom.headers import text_of
from voxtile.io.dicom.source import Source
from voxtile.io.volume import Volume
from voxtile.outputs.preview import grey_window

AIR = -900
"""Hounsfield units that air around a patient lies below, and nothing in other scans does."""

LEAST_OF_CT, MOST_OF_CT = -8192, 32767
"""Values that scanners of CT write, padding and metal included."""

SOME_AIR = 0.01
"""Share of voxels of air that a CT has at least."""

SAMPLE = 64
"""Planes along each axis that are looked at, evenly spread."""


@dataclass(frozen=True)
class Window:
    """A window.

    Attributes:
        name: what a page calls it.
        low: the value that is black.
        high: the value that is white.
    """

    name: str
    low: float
    high: float


CT = (
    Window("soft tissue", -160, 240),
    Window("lung", -1350, 150),
    Window("bone", -500, 1300),
    Window("brain", 0, 80),
    Window("liver", -45, 105),
    Window("mediastinum", -125, 225),
)
"""Usual windows of CT in Hounsfield units: width and level 400/40, 1500/-600, 1800/400, 80/40, 150/30, 350/50."""


def is_ct(volume: Volume) -> bool:
    """Whether the values are Hounsfield units: DICOM says so, and of other formats the values of air tell it."""
    if isinstance(volume.native, Source):
        return text_of(volume.native.datasets[0], "Modality") == "CT"
    some = _sample(volume.data[0])
    low, high = float(some.min()), float(some.max())
    return low >= LEAST_OF_CT and high <= MOST_OF_CT and float(np.mean(some <= AIR)) >= SOME_AIR and high > 0


def windows_of(volume: Volume) -> tuple[Window, ...]:
    """The windows of the first channel; the first of them is the one that a page opens with."""
    low, high = grey_window(volume.data[0])
    own = Window("of this scan: percentiles 1 to 99", low, high)
    least, most = float(volume.data[0].min()), float(volume.data[0].max())
    every = Window("all values", least, most if most > least else least + 1)
    return (*CT, own, every) if is_ct(volume) else (own, every)


def _sample(values: NDArray[Any]) -> NDArray[Any]:
    return values[tuple(slice(None, None, max(size // SAMPLE, 1)) for size in values.shape)]
