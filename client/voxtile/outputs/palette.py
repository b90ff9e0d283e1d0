"""Gives each structure of a mask its colour, the same one in pictures, on pages and in DICOM.

Knows nothing of scans.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

from voxtile.card import Label

Colour = tuple[float, float, float]
"""Red, green, blue in 0 to 1."""


def palette_of(labels: Sequence[Label]) -> dict[int, Colour]:
    """The colour of each value in the mask; 0 is background and has none.

    Args:
        labels: all labels of a model, in its order.
    """
    shown = [label.value for label in labels if label.value != 0]
    return dict(zip(shown, colours(len(shown)), strict=True))


def colours(count: int) -> list[Colour]:
    """Returns `count` colours (red, green, blue in 0 to 1).

    Hues lie a golden section apart, so that neighbours always differ, and are strong, pale and dark in turn.
    """
    tones = ((0.85, 1.0), (0.55, 1.0), (0.9, 0.7))
    return [colorsys.hsv_to_rgb((0.02 + 0.618034 * index) % 1, *tones[index % 3]) for index in range(count)]
