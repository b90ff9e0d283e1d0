"""Strips of a volume: its planes cut along one axis, so that scores of one strip are held instead of whole planes.

Every row of tiles that touches a strip is run for it; a tile that touches two strips is run twice, so that each voxel
gets the same sums in the same order as in one piece. Knows shapes only.
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
"""No strip is narrower than this part of a tile: five times is as often as any tile is worth sending."""


@dataclass(frozen=True)
class Strip:
    """Part of a volume along `axis` (1 or 2 of the prepared grid).

    rows: those of the prepared grid whose scores are needed. target: those of the scan's grid (axes in the prepared
    order) that get labels from them. Rows of neighbours overlap where resampling reads across the cut.
    """

    axis: int
    rows: Span
    target: Span

    def narrowed(self, shape: Sequence[int]) -> tuple[int, ...]:
        """`shape` of the prepared grid with this strip's rows alone."""
        return *shape[: self.axis], self.rows[1] - self.rows[0], *shape[self.axis + 1 :]

    def narrowed_target(self, shape: Sequence[int]) -> tuple[int, ...]:
        """`shape` of the scan's grid with the rows alone that this strip labels."""
        return *shape[: self.axis], self.target[1] - self.target[0], *shape[self.axis + 1 :]

    def within(self, axes: int) -> tuple[slice, ...]:
        """Where its labels lie in an array of so many axes."""
        return tuple(slice(*self.target) if axis == self.axis else slice(None) for axis in range(axes))

    def touches(self, tile: Tile, plan: TilePlan) -> bool:
        first = tile.start[self.axis] - plan.before[self.axis]
        return first < self.rows[1] and first + tile.shape[self.axis] > self.rows[0]


def whole(shape: Sequence[int], target: Sequence[int]) -> Strip:
    """The volume in one piece."""
    return Strip(1, (0, shape[1]), (0, target[1]))


def spans(total: int, count: int, step: int = 1) -> list[Span]:
    """`total` rows in `count` spans of nearly the same length, cut at multiples of `step`; fewer where there are."""
    blocks = math.ceil(total / step)
    count = min(count, blocks)
    edges = [blocks * index // count * step for index in range(count)] + [total]
    return list(itertools.pairwise(edges))


def cut_axis(plan: TilePlan) -> int:
    """The longer axis of a volume's planes, but rather one along which tiles are slices, since none is sent twice."""
    return min((1, 2), key=lambda axis: (plan.roi[axis] > 1, -plan.image[axis]))


def most_strips(plan: TilePlan, axis: int) -> int:
    """How many strips a volume is cut into at most."""
    return max(plan.image[axis] // max(plan.roi[axis] // PARTS_OF_A_TILE, 1), 1)


def tiles_of(plan: TilePlan, strip: Strip) -> list[Tile]:
    """The tiles that touch `strip`, in the plan's order."""
    return [tile for tile in plan if strip.touches(tile, plan)]


def sent_again(parts: Iterable[Sequence[Tile]]) -> int:
    """How many tiles are in more than one of `parts`, each counted for every time after the first."""
    indices = [tile.index for part in parts for tile in part]
    return len(indices) - len(set(indices))
