"""The scan that an explanation follows: the user's own, or a made-up one of a given size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from voxtile.card import Card
from voxtile.chains.prepare import reader_of
from voxtile.io.scan import open_scan
from voxtile.io.volume import Volume

MADE_UP = "a made-up scan"


def read_scan(files: Sequence[Path], card: Card) -> Volume:
    """The scan in `files`, one for each channel, as the client reads it.

    Raises:
        InputError: it is no scan of this model's channels.
    """
    return open_scan(list(files), card.input_channels, reader_of(card))


def made_up_scan(shape: tuple[int, int, int], spacing: tuple[float, float, float], card: Card) -> Volume:
    """A scan of int16 values that rise from plane to plane, so that there is something to normalise by.

    It has one plane in memory, whatever its size.

    Args:
        shape: voxels along i, j, k.
        spacing: in mm.
        card: whose channels it has.
    """
    planes = np.arange(1, shape[2] + 1, dtype=np.int16)
    data = np.broadcast_to(planes, (len(card.input_channels), *shape))
    affine = np.diag([*spacing, 1.0])
    return Volume(data, affine, nib.Nifti1Image(np.zeros((1, 1, 1), np.uint8), affine).header, (MADE_UP,))
