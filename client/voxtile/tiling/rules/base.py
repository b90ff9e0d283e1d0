"""Says what a tiling rule is. Knows nothing of particular rules; `voxtile.tiling.rules.all` lists them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TilingRule:
    """One library's way to lay tiles and to weigh their voxels.

    Attributes:
        name: what a card calls it, `semantics`.
        starts: takes the size of the volume, the size of a tile (voxels) and the overlap (a share of the tile) along
            one axis; returns the first voxels of the tiles in the padded volume.
        weights: takes the shape of a tile and sigma (a share of the tile's size, one for all axes or one for each);
            returns the weights [*roi], float32.
    """

    name: str
    starts: Callable[[int, int, float], tuple[int, ...]]
    weights: Callable[[Sequence[int], float | Sequence[float]], NDArray[np.float32]]


def for_each_axis(value: float | Sequence[float], roi: Sequence[int]) -> Sequence[float]:
    """`value` for each axis of a tile; a single number counts for all of them."""
    return value if isinstance(value, Sequence) else (value,) * len(roi)
