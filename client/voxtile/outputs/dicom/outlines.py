"""Draws the outlines of a mask along the edges of its pixels, so that they enclose exactly the mask's area.

Outlines through the middles of pixels lose a quarter of a rib. Holes are joined to the outline around them by a cut of
no width: readers of DICOM's closed contours know no other holes. Knows nothing of scans or of DICOM's objects.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

STEPS = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)])
"""Steps along a pixel's edges, each a right turn from the one before; the mask lies to the right of every step."""


def outlines(mask: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """The closed outlines of a mask, one for each of its parts whose pixels share edges.

    Args:
        mask: [i, j].

    Returns:
        For each part the corners [n, 2] of its outline in voxels along i and j: pixel (0, 0) reaches from -0.5 to 0.5.
    """
    edges = _Edges(mask)
    inner: list[list[int]] = []
    outer: list[list[int]] = []
    for ring in edges.rings():
        (inner if _area(edges.points[ring]) < 0 else outer).append(ring)
    # A hole is joined to what lies left of it, which so is joined already.
    for hole in sorted((_leftmost(edges.points, ring) for ring in inner), key=lambda edge: tuple(edges.points[edge])):
        edges.join(hole)
    return [_corners(edges.points[edges.ring(ring[0])]) - 0.5 for ring in outer]


class _Edges:
    """The edges between a mask's pixels and others, each with the one that follows it.

    Attributes:
        points: [edge, 2] the corner along i and j from which an edge runs one step.
    """

    def __init__(self, mask: NDArray[np.bool_]) -> None:
        padded = np.pad(mask.astype(np.int8), 1)
        across_j = np.diff(padded[1:-1], axis=1)  # [i, j]: between pixels j - 1 and j
        across_i = np.diff(padded[:, 1:-1], axis=0)
        starts = [
            np.argwhere(across_j == 1),
            np.argwhere(across_i == -1),
            np.argwhere(across_j == -1) + STEPS[0],
            np.argwhere(across_i == 1) + STEPS[1],
        ]
        points = np.concatenate(starts)
        direction = np.repeat(np.arange(4), [len(one) for one in starts])
        at = np.full((4, mask.shape[0] + 1, mask.shape[1] + 1), -1)
        at[direction, points[:, 0], points[:, 1]] = np.arange(len(points))
        i, j = (points + STEPS[direction]).T
        right, straight, left = (at[(direction + turn) % 4, i, j] for turn in (1, 0, 3))
        # Where two pixels touch at a corner alone, there are two ways on: a right turn stays at the same pixel.
        follows = np.where(right >= 0, right, np.where(straight >= 0, straight, left))
        self.points: NDArray[np.int64] = points
        self._at = at.max(axis=0)
        self._next: list[int] = follows.tolist()

    def rings(self) -> list[list[int]]:
        """The edges of each ring, in order. Around the mask they turn right, around its holes left."""
        seen, found = bytearray(len(self._next)), []
        for first in range(len(self._next)):
            if not seen[first]:
                found.append(self.ring(first))
                for edge in found[-1]:
                    seen[edge] = 1
        return found

    def ring(self, first: int) -> list[int]:
        """The edges of the ring from an edge on."""
        edges, edge = [first], self._next[first]
        while edge != first:
            edges.append(edge)
            edge = self._next[edge]
        return edges

    def join(self, hole: int) -> None:
        """Joins a hole to the ring on its left by a cut there and back from its leftmost edge."""
        i, j = self.points[hole].tolist()
        to = int(np.flatnonzero(self._at[:i, j] >= 0)[-1])
        edge, last, back = int(self._at[to, j]), self.ring(hole)[-1], len(self._next)
        self.points = np.vstack([self.points, [(i, j), (to, j)]])
        self._next += [back + 1, self._next[edge]]
        self._next[edge], self._next[last] = hole, back


def _leftmost(points: NDArray[np.int64], ring: list[int]) -> int:
    """The edge of a ring that starts at the lowest i, and of those at the lowest j."""
    i, j = points[ring].T
    return ring[int(np.lexsort((j, i))[0])]


def _area(points: NDArray[np.int64]) -> float:
    """The area that a ring of points [n, 2] encloses; below 0 where it turns left."""
    x, y = points.T
    return float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)) / 2


def _corners(points: NDArray[np.int64]) -> NDArray[np.float64]:
    """The points of a ring at which it turns."""
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    turns |= (before * after).sum(1) < 0
    return np.asarray(points[turns], np.float64)
