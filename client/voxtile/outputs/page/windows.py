"""Chooses the windows that a scan is looked at through: which value is black, and which is white.

Knows nothing of pages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.io.dicom.objects.headers import text_of
from voxtile.io.dicom.source import Source
from voxtile.io.volume import Volume
from voxtile.outputs.preview import grey_window

AIR = (-1100, -900)
"""Hounsfield units of the air around a patient, with noise."""

LEAST_OF_CT, MOST_OF_CT = -8192, 32767
"""Values that scanners of CT write, padding and metal included."""

SOME_AIR = 0.05
"""Share of voxels of air that a CT has at least; of a map of phases, whose values are even, a fortieth lies there."""

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


def says_ct(volume: Volume) -> bool:
    """Whether the scan itself says that its values are Hounsfield units, which only DICOM does."""
    return isinstance(volume.native, Source) and text_of(volume.native.datasets[0], "Modality") == "CT"


def looks_like_ct(volume: Volume) -> bool:
    """Whether windows of CT suit the first channel: the scan says so, or air is in it and the scan says nothing."""
    if isinstance(volume.native, Source):
        return says_ct(volume)
    some = _sample(volume.data[0])
    low, high = float(some.min()), float(some.max())
    air = float(np.mean((some >= AIR[0]) & (some <= AIR[1])))
    return low >= LEAST_OF_CT and 0 < high <= MOST_OF_CT and air >= SOME_AIR


def windows_of(volume: Volume) -> tuple[Window, ...]:
    """The windows of the first channel; the first of them is the one that a page opens with."""
    low, high = grey_window(volume.data[0])
    own = Window("of this scan: percentiles 1 to 99", low, high)
    least, most = float(volume.data[0].min()), float(volume.data[0].max())
    every = Window("all values", least, most if most > least else least + 1)
    return (*CT, own, every) if looks_like_ct(volume) else (own, every)


def _sample(values: NDArray[Any]) -> NDArray[Any]:
    return values[tuple(slice(None, None, max(size // SAMPLE, 1)) for size in values.shape)]
