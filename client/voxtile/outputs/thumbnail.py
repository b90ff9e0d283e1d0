"""Draws a small picture of a mask over its scan: three slices beside each other, upright, in true proportions.

The patient's left is on the left. Knows nothing of pages.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.card import Label
from voxtile.io.volume import Volume
from voxtile.outputs.palette import palette_of
from voxtile.outputs.preview import NARROWEST, OPACITY, WIDEST, Slice, choose_slices, grey_window

HEIGHT = 96
"""Pixels."""

QUALITY = 80
"""Of the JPEG: some 5 KB a picture."""


def thumbnail(volume: Volume, labels: NDArray[Any], card_labels: Sequence[Label]) -> bytes:
    """A JPEG.

    Args:
        volume: the scan; its first channel is drawn.
        labels: [i, j, k] on the scan's own grid.
        card_labels: names and values; 0 is background and not drawn.
    """
    from matplotlib.image import imsave

    window, palette = grey_window(volume.data[0]), palette_of(card_labels)
    parts = [_drawn(cut, window, palette) for cut in choose_slices(volume, labels)]
    file = io.BytesIO()
    imsave(file, np.concatenate(parts, axis=1), format="jpg", pil_kwargs={"quality": QUALITY})
    return file.getvalue()


def _drawn(
    cut: Slice, window: tuple[float, float], palette: dict[int, tuple[float, float, float]]
) -> NDArray[np.uint8]:
    """[row, column, 3] red, green, blue."""
    low, high = window
    across, up = cut.size
    width = round(HEIGHT * float(np.clip(across / up, NARROWEST, WIDEST)))
    place = np.ix_(_nearest(cut.grey.shape[0], width), _nearest(cut.grey.shape[1], HEIGHT))
    grey = np.clip((cut.grey[place].astype(np.float64) - low) / (high - low), 0, 1)
    picture = np.repeat(grey[..., None], 3, axis=2)
    labels = cut.labels[place]
    for value, colour in palette.items():
        picture[labels == value] = (1 - OPACITY) * picture[labels == value] + OPACITY * np.array(colour)
    return np.rint(255 * picture.transpose(1, 0, 2)[::-1]).astype(np.uint8)


def _nearest(size: int, pixels: int) -> NDArray[np.intp]:
    """[pixels] which of `size` voxels each pixel shows."""
    return np.minimum((np.arange(pixels) + 0.5) * size / pixels, size - 1).astype(np.intp)
