"""Where the tiles of a volume lie, and what each voxel of a tile weighs.

Shapes in, positions and weights out, by the rule that the card names. Knows nothing of scans, networks or servers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from voxtile.card import Card, Tiling
from voxtile.errors import InputError
from voxtile.tiling.rules.all import RULES
from voxtile.tiling.rules.base import for_each_axis

NUMPY_MODES = {"replicate": "edge", "reflect": "reflect", "circular": "wrap"}
"""PyTorch's ways to pad with a volume's own voxels, and NumPy's names for them."""

MOST_OWN = {"reflect": 1, "circular": 0}
"""Ways to pad that repeat no voxel: how many of an axis are too few for padding as wide as the axis."""


@dataclass(frozen=True)
class Tile:
    """The place of one tile.

    Attributes:
        index: the number of the tile in its plan, from 0.
        start: first voxel along each axis, in the padded volume.
        shape: voxels along each axis.
    """

    index: int
    start: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def slices(self) -> tuple[slice, ...]:
        """The tile as an index into the spatial axes of the padded volume."""
        return tuple(slice(first, first + size) for first, size in zip(self.start, self.shape, strict=True))


@dataclass(frozen=True)
class TilePlan:
    """All tiles of one volume, in C order (the last axis runs fastest), and the weights within a tile.

    Attributes:
        image: shape of the volume.
        roi: shape of a tile.
        starts: for each axis, the first voxels of the tiles, in the padded volume.
        tiling: the card's tiling.
    """

    image: tuple[int, ...]
    roi: tuple[int, ...]
    starts: tuple[tuple[int, ...], ...]
    tiling: Tiling

    @cached_property
    def padded(self) -> tuple[int, ...]:
        """Shape of the volume once it is padded up to the ROI."""
        return tuple(max(size, tile) for size, tile in zip(self.image, self.roi, strict=True))

    @cached_property
    def before(self) -> tuple[int, ...]:
        """Voxels of padding in front of the volume, for each axis."""
        return tuple((full - size) // 2 for full, size in zip(self.padded, self.image, strict=True))

    @cached_property
    def sources(self) -> tuple[NDArray[np.intp] | None, ...]:
        """For each axis that is padded with the volume's own voxels, which voxel each padded one is; else None."""
        mode = NUMPY_MODES.get(self.tiling.padding_mode)
        widths = zip(self.image, self.padded, self.before, strict=True)
        return tuple(
            None if mode is None or full == size else np.pad(np.arange(size), (before, full - size - before), mode)  # type: ignore[call-overload]
            for size, full, before in widths
        )

    @cached_property
    def weights(self) -> NDArray[np.float32]:
        """[*roi] float32: what each voxel of a tile weighs where tiles overlap."""
        if self.tiling.mode == "constant":
            return np.ones(self.roi, np.float32)
        return RULES[self.tiling.semantics].weights(self.roi, self.tiling.sigma_scale)

    def __len__(self) -> int:
        return math.prod(len(axis) for axis in self.starts)

    def __iter__(self) -> Iterator[Tile]:
        for index, start in enumerate(itertools.product(*self.starts)):
            yield Tile(index, start, self.roi)


def plan_tiles(image: Sequence[int], roi: Sequence[int], tiling: Tiling) -> TilePlan:
    """Returns the tiles of shape `roi` of a volume of shape `image`, by the rule `tiling` of a card.

    Raises:
        InputError: the volume has too few voxels to be padded with its own, as PyTorch pads.
    """
    shape, tile = tuple(map(int, image)), tuple(map(int, roi))
    spare = MOST_OWN.get(tiling.padding_mode)
    for size, wanted in zip(shape, tile, strict=True):
        if spare is not None and wanted - size - (wanted - size) // 2 > size - spare:
            raise InputError(
                f"the model pads small scans by {tiling.padding_mode}, which takes at most {size - spare} voxels on a "
                f"side of {size}; expected a scan of {' × '.join(map(str, tile))} voxels or little less, found "
                f"{' × '.join(map(str, shape))} on the model's grid"
            )
    starts = RULES[tiling.semantics].starts
    axes = zip(shape, tile, for_each_axis(tiling.overlap, tile), strict=True)
    return TilePlan(shape, tile, tuple(starts(*axis) for axis in axes), tiling)


def tile_shape(card: Card, image: Sequence[int]) -> tuple[int, int, int]:
    """Returns the shape of the tiles of a volume of shape `image`: the card's ROI, for a 2D network one slice thick.

    Where the network takes slices of any size, a tile is a whole slice, padded up to the card's multiple.
    """
    roi = list(card.roi_size)
    if card.slice_axis is not None:
        roi.insert(card.slice_axis, 1)
    if card.multiple is not None:
        roi = [1 if axis == card.slice_axis else -(-n // card.multiple) * card.multiple for axis, n in enumerate(image)]
    return roi[0], roi[1], roi[2]
