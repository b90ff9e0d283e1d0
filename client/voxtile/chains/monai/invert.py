"""From scores on the model's grid to labels on the scan's own, a few planes at a time.

Scores are resampled linearly back to the scan's voxels, and only there decided, as MONAI does
(`Invertd(nearest_interp=False)`, then `AsDiscrete(argmax=True)`). A decided voxel takes one byte, and no more than a
slab of scores is held. Knows nothing of tiles or servers.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.card import Card
from voxtile.chains.decision import Decision, decision_of
from voxtile.chains.monai.grid import Grid
from voxtile.chains.monai.resample import SLAB_BYTES, AxisMap, Taps, blend, usable_threads
from voxtile.chains.scores import activator
from voxtile.tiling.strips import Strip, spans, whole

Labels = NDArray[Any]

BOOKKEEPING = 1 << 16
"""Bytes of taps, threads and everything else that does not depend on the size of the planes."""


class Restorer:
    """Implements `voxtile.chains.base.PlaneSink`: takes planes of scores in order, and returns the labels of the scan.

    Args:
        grid: maps to the scan's own grid.
        card: the model's card, whose rule decides the labels.
        threads: threads that share the planes; by default the usable cores.
        keep_scores: also keep the scores on the scan's own grid, as float32 (see `scores`).
        decision: how scores become labels; by default the card's.
        activated: whether the scores that come have gone through the card's activation.
    """

    def __init__(
        self,
        grid: Grid,
        card: Card,
        *,
        threads: int | None = None,
        keep_scores: bool = False,
        decision: Decision | None = None,
        activated: bool = False,
    ) -> None:
        decision = decision or decision_of(card)
        self._grid = grid
        self._channels = card.output.scores
        self._scale = card.output.scale
        self._decide = decision.decide
        self._activate = (lambda scores: scores) if activated else activator(card)
        self._threads = threads or usable_threads()
        self._whole_taps = _inverse_taps(grid, nearest=takes_nearest(card))
        self._order = _blend_order(grid, self._channels)
        self._depth = self._whole_taps[0] or _nearest_taps(grid.maps[0].inverse)
        self._labels = np.zeros(grid.oriented, decision.dtype)
        self._scores = np.zeros((self._channels, *grid.oriented), np.float32) if keep_scores else None
        self._received = 0
        self.start_strip(whole(grid.shape, grid.oriented))

    def start_strip(self, strip: Strip) -> None:
        """Announces that the planes that follow belong to `strip`, from its first plane on.

        Raises:
            ValueError: planes of the strip before are missing.
        """
        if self._received:
            self._check_complete()
        self._strip = strip
        self._taps = _strip_taps(self._whole_taps, strip)
        self._plane = strip.narrowed(self._grid.shape)[1:]
        self._step = _planes_a_job(self._grid, self._channels, strip)
        self._kept = np.empty((self._channels, 0, *self._plane), np.float32)
        self._received = self._done = 0

    def add_planes(self, planes: NDArray[np.float32]) -> None:
        """Takes the next planes [score, n, y, z] of the model's grid; the caller may overwrite the array afterwards.

        Raises:
            ValueError: the planes have another shape, or there are more than the grid has.
            ModelError: the model gives labels that the card does not have.
        """
        shape, wanted = planes.shape, (self._channels, *self._plane)
        if (shape[0], *shape[2:]) != wanted or self._received + shape[1] > self._grid.shape[0]:
            raise ValueError(
                f"planes {shape} after {self._received} of a grid {self._grid.shape}, {self._channels} scores"
            )
        planes = self._activate(planes)
        self._received += shape[1]
        last = int(np.searchsorted(self._depth.high, self._received))
        jobs = [(first, min(first + self._step, last)) for first in range(self._done, last, self._step)]
        if jobs:
            with ThreadPoolExecutor(min(self._threads, len(jobs))) as pool:
                list(pool.map(lambda job: self._finish(job[0], job[1], planes), jobs))
        self._done = last
        self._keep(planes)

    def finish(self) -> Labels:
        """Returns the labels [i, j, k] on the scan's own grid, a view.

        Raises:
            ValueError: planes are missing.
        """
        self._check_complete()
        return self._grid.orientation.undo(self._labels)

    @property
    def scores(self) -> NDArray[np.float32]:
        """[score, i, j, k] on the scan's own grid, divided by the card's scale; ValueError unless they were kept."""
        if self._scores is None:
            raise ValueError("scores are kept only with keep_scores=True")
        return self._grid.orientation.undo(self._scores)

    def _check_complete(self) -> None:
        if self._received != self._grid.shape[0]:
            raise ValueError(f"expected {self._grid.shape[0]} planes of scores, got {self._received}")

    def _finish(self, first: int, last: int, planes: NDArray[np.float32]) -> None:
        """Decides the output planes [first, last), whose source planes have all come."""
        source = self._source(self._depth.span(first, last), planes)
        depth = None if self._taps[0] is None else self._depth.part(first, last)
        scores = _blended(source, (depth, self._taps[1], self._taps[2]), self._order)
        place = (slice(first, last), *self._strip.within(3)[1:])
        self._labels[place] = self._decide(scores)
        if self._scores is not None:
            np.divide(scores, self._scale, out=self._scores[(slice(None), *place)])

    def _source(self, span: slice, planes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the source planes of `span`: a view where all of them came with the latest call.

        A plane reads two neighbours, so that of those that came before, it can only read the last, which was kept.
        """
        start = self._received - planes.shape[1]
        if span.start >= start:
            return planes[:, span.start - start : span.stop - start]
        return np.concatenate((self._kept, planes[:, : span.stop - start]), axis=1)

    def _keep(self, planes: NDArray[np.float32]) -> None:
        """Copies the plane that a later output plane needs beside its neighbour, if there is one."""
        needed = int(self._depth.low[self._done]) if self._done < len(self._depth.low) else self._received
        self._kept = self._source(slice(min(needed, self._received), self._received), planes).copy()


def restore_bytes(grid: Grid, card: Card, planes: int, threads: int | None = None, strip: Strip | None = None) -> int:
    """Returns the bytes that a Restorer takes at its peak, kept scores apart.

    Args:
        grid: as for the Restorer.
        card: as for the Restorer.
        planes: planes that it gets at a time, at most.
        threads: as for the Restorer.
        strip: the strip that the planes belong to; by default they are whole.
    """
    channels, threads = card.output.scores, threads or usable_threads()
    strip = strip or whole(grid.shape, grid.oriented)
    prepared = math.prod(strip.narrowed(grid.shape)[1:])
    labels = math.prod(grid.oriented) * decision_of(card).dtype.itemsize + BOOKKEEPING
    if card.output.activation != "none":
        labels += 2 * 4 * channels * planes * prepared
    step = _planes_a_job(grid, channels, strip)
    if not grid.resampled:
        return labels + threads * 10 * min(step, planes) * math.prod(strip.narrowed_target(grid.oriented)[1:])
    goal = strip.narrowed_target((step, *grid.oriented[1:]))
    shape = [_sources(grid, step), *strip.narrowed(grid.shape)[1:]]
    before = largest = math.prod(shape)
    for axis in _blend_order(grid, channels):
        shape[axis] = goal[axis]
        largest = max(largest, math.prod(shape))
    job = 4 * channels * (before + 3 * largest) + 10 * math.prod(goal)  # a blend holds its input and two gathers
    return labels + threads * job + 4 * channels * 2 * prepared


def grid_strips(grid: Grid, card: Card, axis: int, count: int) -> tuple[Strip, ...]:
    """Returns the scan in `count` strips along `axis` (1 or 2), each with the model's rows that its labels need."""
    if count == 1:
        return (whole(grid.shape, grid.oriented),)
    taps = _inverse_taps(grid, nearest=takes_nearest(card))[axis]
    parts = spans(grid.oriented[axis], count)
    reads = [taps.span(*part) if taps else slice(*part) for part in parts]
    return tuple(Strip(axis, (read.start, read.stop), part) for read, part in zip(reads, parts, strict=True))


def takes_nearest(card: Card) -> bool:
    """Whether scores are brought back by their nearest neighbours: class indices, or where the card's chain says so."""
    finishing = card.finishing
    return card.output.kind == "labels" or (finishing is not None and finishing.nearest)


def _inverse_taps(grid: Grid, nearest: bool) -> tuple[Taps | None, ...]:
    """Taps from the model's grid back to the scan's, for each axis; None where it does not change.

    With `nearest`, which class indices need, each voxel takes the nearest one.
    """
    inverse = [axis.inverse for axis in grid.maps]
    if not nearest:
        return tuple(None if axis.identity else axis.taps for axis in inverse)
    return tuple(None if axis.identity else _nearest_taps(axis) for axis in inverse)


def _nearest_taps(axis: AxisMap) -> Taps:
    """Taps that take the nearest voxel alone: for class indices, and to count the planes of an unchanged axis."""
    return Taps(axis.nearest, axis.nearest, np.zeros(axis.target, np.float32))


def _strip_taps(taps: tuple[Taps | None, ...], strip: Strip) -> tuple[Taps | None, ...]:
    """`taps`, of which those of the cut axis are only for the strip's labels and count from the strip's first row."""
    cut = taps[strip.axis]
    if cut is None:
        return taps
    first, part = strip.rows[0], slice(*strip.target)
    own = Taps(cut.low[part] - first, cut.high[part] - first, cut.weight[part])
    return tuple(own if axis == strip.axis else other for axis, other in enumerate(taps))


def _blended(values: NDArray[np.float32], taps: tuple[Taps | None, ...], order: tuple[int, ...]) -> NDArray[np.float32]:
    """`values` [score, x, y, z] resampled along the axes that have taps, in `order`."""
    todo = [(axis, tap) for axis in order if (tap := taps[axis]) is not None]
    if todo:
        values = np.ascontiguousarray(values)  # else `take` would copy it, and twice
    for axis, tap in todo:
        values = blend(values, axis + 1, tap)
    return values


def _blend_order(grid: Grid, channels: int) -> tuple[int, ...]:
    """The order in which axes are resampled: the one that shrinks most first, judged by whole planes.

    Another order rounds differently, so it is the same for every strip.
    """
    step = _planes_a_job(grid, channels, whole(grid.shape, grid.oriented))
    growth = (step / _sources(grid, step), *(grid.oriented[axis] / grid.shape[axis] for axis in (1, 2)))
    return tuple(sorted(range(3), key=lambda axis: growth[axis]))


def _sources(grid: Grid, step: int) -> int:
    """Source planes that `step` output planes read, at most."""
    return min(math.ceil((step - 1) * grid.maps[0].inverse.scale) + 2, grid.shape[0])


def _planes_a_job(grid: Grid, channels: int, strip: Strip) -> int:
    """Output planes that one job decides: as many as fit a core's cache with all their scores."""
    prepared, oriented = strip.narrowed(grid.shape), strip.narrowed_target(grid.oriented)
    return max(SLAB_BYTES // (4 * channels * max(math.prod(prepared[1:]), math.prod(oriented[1:]))), 1)
