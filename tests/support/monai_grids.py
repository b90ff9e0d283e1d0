"""The grid that a model sees of a scan, as its chain makes it; the scan's voxels do not matter to it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tests.support.phantoms import header_of
from voxtile.card import Card
from voxtile.chains.monai.grid import Grid
from voxtile.chains.monai.preprocess import preprocess
from voxtile.io.volume import Volume


def model_grid(affine: NDArray[np.float64], shape: tuple[int, int, int], card: Card) -> Grid:
    """The grid that `card` asks for of a scan with this affine [4, 4] and shape."""
    voxels = np.zeros(shape, np.int16, order="F")
    return preprocess(Volume(voxels[None], affine, header_of(shape, affine), ("scan",)), card).grid
