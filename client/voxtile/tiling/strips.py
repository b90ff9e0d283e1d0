"""Strips of a volume: its planes cut along one axis, so that scores of one strip are held instead of whole planes.

A tile that touches two strips is run for each of them, so that each voxel gets the same sums in the same order as
without a cut. Knows shapes only.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from voxtile.tiling.plan import Tile, TilePlan

Span = tuple[int, int]
"""First voxel, and one past the last."""

PARTS_OF_A_TILE = 4
"""A strip is at least a quarter of a tile wide, so that no tile is sent more than five times."""


@dataclass(frozen=True)
class Strip:
    """Part of a volume along one axis.

    Attributes:
        axis: 1 or 2 of the prepared grid.
        rows: the rows of the prepared grid whose scores are needed. Neighbouring strips share rows where resampling
            reads across the cut.
        target: the rows of the scan's grid (axes in the prepared order) that get their labels from these scores.
    """

    axis: int
    rows: Span
    target: Span

    def narrowed(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Returns `shape`, of the prepared grid, with only the rows of this strip."""
        return *shape[: self.axis], self.rows[1] - self.rows[0], *shape[self.axis + 1 :]

    def narrowed_target(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Returns `shape`, of the scan's grid, with only the rows that this strip labels."""
        return *shape[: self.axis], self.target[1] - self.target[0], *shape[self.axis + 1 :]

    def within(self, axes: int) -> tuple[slice, ...]:
        """Returns the place of its labels in an array of `axes` axes."""
        return tuple(slice(*self.target) if axis == self.axis else slice(None) for axis in range(axes))

    def touches(self, tile: Tile) -> bool:
        """Returns whether `tile` covers any of the strip's rows; where an axis is padded, its one tile covers all."""
        first = tile.start[self.axis]
        return first < self.rows[1] and first + tile.shape[self.axis] > self.rows[0]


def whole(shape: Sequence[int], target: Sequence[int]) -> Strip:
    """Returns the strip that is the whole volume: `shape` on the prepared grid, `target` on the scan's."""
    return Strip(1, (0, shape[1]), (0, target[1]))


def spans(total: int, count: int, step: int = 1) -> list[Span]:
    """Returns `total` rows in `count` spans of nearly the same length, cut at multiples of `step`.

    There are fewer spans where `total` does not hold so many steps.
    """
    blocks = math.ceil(total / step)
    count = min(count, blocks)
    edges = [blocks * index // count * step for index in range(count)] + [total]
    return list(itertools.pairwise(edges))


def cut_axis(plan: TilePlan) -> int:
    """Returns the axis to cut: one along which tiles are slices, since then no tile is sent twice, else the longer."""
    return min((1, 2), key=lambda axis: (plan.roi[axis] > 1, -plan.image[axis]))


def most_strips(plan: TilePlan, axis: int) -> int:
    """Returns how many strips a volume is cut into at most."""
    return max(plan.image[axis] // max(plan.roi[axis] // PARTS_OF_A_TILE, 1), 1)


def tiles_of(plan: TilePlan, strip: Strip) -> list[Tile]:
    """Returns the tiles that touch `strip`, in the plan's order."""
    return [tile for tile in plan if strip.touches(tile)]


def sent_again(parts: Iterable[Sequence[Tile]]) -> int:
    """Returns how many tiles of `parts` are sent again: every occurrence of a tile after its first one counts."""
    indices = [tile.index for part in parts for tile in part]
    return len(indices) - len(set(indices))
