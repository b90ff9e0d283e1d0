"""Cuts the prepared scan into the arrays that travel, and puts the answers back together tile by tile.

A job is one pass of one tile through the network: the tile as it is, or mirrored along some axes. Jobs are made
in the plan's order and gathered into requests of at most one batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.card import Card
from voxtile.half_floats import as_float32
from voxtile.tiling.plan import Tile, TilePlan
from voxtile.triton.endpoint import Request

Encode = Callable[[NDArray[Any]], NDArray[Any]]


@dataclass(frozen=True)
class Cutter:
    """Cuts tiles out of `data` [channel, *grid] as the model takes them.

    encode: turns prepared values into the model's input type. slice_axis: dropped from the tiles of a 2D network.
    """

    data: NDArray[Any]
    plan: TilePlan
    encode: Encode
    padding: float
    slice_axis: int | None = None

    def cut(self, tile: Tile) -> NDArray[Any]:
        """The tile [channel, *roi] in the input type; what lies outside the scan holds the padding mark."""
        inside, target = [slice(None)], [slice(None)]
        for start, size, before, n in zip(tile.start, tile.shape, self.plan.before, self.plan.image, strict=True):
            first, last = max(start - before, 0), min(start - before + size, n)
            inside.append(slice(first, last))
            target.append(slice(first + before - start, last + before - start))
        values = self.encode(self.data[tuple(inside)])
        if values.shape[1:] != tile.shape:
            padded = np.full((len(values), *tile.shape), self.padding, values.dtype)
            padded[tuple(target)] = values
            values = padded
        return values if self.slice_axis is None else values.squeeze(1 + self.slice_axis)


def tta_flips(axes: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """All ways to mirror along `axes`, the plain pass first, in nnU-Net's order (fewer axes before more)."""
    return tuple(itertools.chain.from_iterable(itertools.combinations(axes, n) for n in range(len(axes) + 1)))


def requests(
    tiles: Iterator[Tile],
    cutter: Cutter,
    flips: Sequence[tuple[int, ...]],
    batch: int,
    statistics: NDArray[np.float32] | None,
) -> Iterator[Request]:
    """The jobs of `tiles`, gathered into requests of `batch` (the last one may be smaller)."""
    jobs = (_flipped(values, flip) for values in map(cutter.cut, tiles) for flip in flips)
    for index in itertools.count():
        some = list(itertools.islice(jobs, batch))
        if not some:
            return
        yield Request(index, np.stack(some), statistics)


def tile_scores(
    answers: Iterator[NDArray[Any]], flips: Sequence[tuple[int, ...]], card: Card
) -> Iterator[NDArray[np.generic]]:
    """The scores [score, *tile] of each tile in turn: mirrored back and averaged over its jobs, in float32."""
    jobs = itertools.chain.from_iterable(answers)
    while (first := next(jobs, None)) is not None:
        scores = first
        if len(flips) > 1:
            scores = as_float32(first)
            for flip in flips[1:]:
                scores += _flipped(as_float32(next(jobs)), flip)
            scores /= len(flips)
        yield scores if card.slice_axis is None else np.expand_dims(scores, 1 + card.slice_axis)


def _flipped(values: NDArray[Any], axes: tuple[int, ...]) -> NDArray[Any]:
    """`values` [channel, *spatial] mirrored along spatial `axes`."""
    return np.flip(values, tuple(1 + axis for axis in axes)) if axes else values
