"""Cuts the prepared scan into batches of tiles, and averages the scores of each tile over its flips.

A pass is one tile on its way through the network: as it is, or flipped along some axes. Passes are made in the plan's
order and gathered into batches. Knows nothing of servers or of how batches are sent.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.card import Card
from voxtile.half_floats import as_float32
from voxtile.tensor_types import itemsize
from voxtile.tiling.plan import Tile, TilePlan

Encode = Callable[[NDArray[Any]], NDArray[Any]]


@dataclass(frozen=True)
class Cutter:
    """Cuts tiles out of a prepared scan, in the form that the network takes.

    Where the plan's tiling pads with the scan's own voxels, `padding` is not used.

    Attributes:
        data: [channel, *grid] the prepared scan.
        plan: where the tiles lie.
        encode: converts prepared values to the model's input type.
        padding: what voxels outside the scan hold.
        slice_axis: the spatial axis that a 2D network does not have, dropped from its tiles.
    """

    data: NDArray[Any]
    plan: TilePlan
    encode: Encode
    padding: float
    slice_axis: int | None = None

    def cut(self, tile: Tile) -> NDArray[Any]:
        """Returns the tile [channel, *roi] in the input type; voxels outside the scan hold `padding`."""
        inside, target = [slice(None)], [slice(None)]
        for start, size, before, n in zip(tile.start, tile.shape, self.plan.before, self.plan.image, strict=True):
            last = min(start + size, n)  # an axis that is padded has a single tile, which begins at 0
            inside.append(slice(start, last))
            target.append(slice(before, before + last - start))
        values = self.encode(self.data[tuple(inside)])
        for axis, own in enumerate(self.plan.sources, 1):
            if own is not None:
                values = values.take(own, axis)
        if values.shape[1:] != tile.shape:
            padded = np.full((len(values), *tile.shape), self.padding, values.dtype)
            padded[tuple(target)] = values
            values = padded
        return values if self.slice_axis is None else values.squeeze(1 + self.slice_axis)


@dataclass(frozen=True, eq=False)
class Batch:
    """Some passes that go through the network together.

    Attributes:
        index: the number of the batch, from 0.
        values: [pass, channel, *roi] in the model's input type.
    """

    index: int
    values: NDArray[Any]


def tta_flips(axes: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Returns all ways to flip along `axes`: the plain pass first, then in nnU-Net's order (fewer axes before more)."""
    return tuple(itertools.chain.from_iterable(itertools.combinations(axes, n) for n in range(len(axes) + 1)))


def tile_batches(tiles: Iterator[Tile], cutter: Cutter, flips: Sequence[tuple[int, ...]], size: int) -> Iterator[Batch]:
    """Yields the passes of `tiles`, every tile in all of `flips`, in batches of `size`; the last may be smaller."""
    passes = (_flipped(values, flip) for values in map(cutter.cut, tiles) for flip in flips)
    for index in itertools.count():
        some = list(itertools.islice(passes, size))
        if not some:
            return
        yield Batch(index, np.stack(some))


def tile_scores(
    answers: Iterator[NDArray[Any]], flips: Sequence[tuple[int, ...]], slice_axis: int | None = None
) -> Iterator[NDArray[np.generic]]:
    """Yields the scores [score, *tile] of each tile in turn, flipped back and averaged over its passes in float32.

    Args:
        answers: for each batch of `tile_batches`, in order, its scores [pass, score, *roi].
        flips: as for `tile_batches`.
        slice_axis: as for the Cutter; the scores get this axis back.
    """
    passes = itertools.chain.from_iterable(answers)
    while (first := next(passes, None)) is not None:
        scores = first
        if len(flips) > 1:
            scores = as_float32(first)
            for flip in flips[1:]:
                scores += _flipped(as_float32(next(passes)), flip)
            scores /= len(flips)
        yield scores if slice_axis is None else np.expand_dims(scores, 1 + slice_axis)


def tile_bytes(plan: TilePlan, card: Card, channels: int) -> int:
    """Returns the bytes of one tile of `channels` channels as it is sent, and of its scores."""
    voxels = math.prod(plan.roi)
    return voxels * (channels * itemsize(card.input.dtype) + card.output.scores * itemsize(card.output.dtype))


def _flipped(values: NDArray[Any], axes: tuple[int, ...]) -> NDArray[Any]:
    """`values` [channel, *spatial] flipped along the spatial `axes`."""
    return np.flip(values, tuple(1 + axis for axis in axes))
