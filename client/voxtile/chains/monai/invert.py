"""From scores on the prepared grid to labels on the scan's own, a few planes at a time.

Scores are resampled linearly back to the scan's voxels, and only there decided, as MONAI does
(`Invertd(nearest_interp=False)`, then `AsDiscrete(argmax=True)`); what has been decided takes one byte a voxel, and no
more than a slab of scores is ever held. Knows nothing of tiles or servers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.card import Card
from voxtile.chains.monai.grid import Grid
from voxtile.chains.monai.resample import SLAB_BYTES, Taps, blend, usable_threads
from voxtile.errors import ModelError
from voxtile.tiling.strips import Strip, spans, whole

Labels = NDArray[np.uint8] | NDArray[np.uint16]
Decide = Callable[[NDArray[np.float32]], NDArray[Any]]


BOOKKEEPING = 1 << 16
"""Bytes for taps, threads and what else does not grow with the scan's planes."""


class Restorer:
    """Takes finished planes of scores in order; gives the labels of the scan.

    keep_scores: also keep the scores on the scan's own grid (float32, as large as they are), see `scores`. Planes are
    whole ones unless `begin` names a strip of them.
    """

    def __init__(self, grid: Grid, card: Card, *, threads: int | None = None, keep_scores: bool = False) -> None:
        self._grid = grid
        self._channels = card.output.scores
        self._scale = card.output.scale
        self._decide = decider(card)
        self._activate = activator(card)
        self._threads = threads or usable_threads()
        self._whole_taps = _inverse_taps(grid, nearest=card.output.kind == "labels")
        self._order = _blend_order(grid, self._channels)
        self._depth = self._whole_taps[0] or _plain_taps(grid.oriented[0])
        self._labels = np.zeros(grid.oriented, label_type(card))
        self._scores = np.zeros((self._channels, *grid.oriented), np.float32) if keep_scores else None
        self._received = 0
        self.start_strip(whole(grid.shape, grid.oriented))

    def start_strip(self, strip: Strip) -> None:
        """Takes the planes that follow as those of `strip`, from the first on.

        Raises ValueError where planes of the strip before are missing.
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
        """The next planes [score, n, y, z] of the prepared grid along its first axis; not kept after the call.

        Raises ValueError for planes of another shape, or more than the grid has; ModelError for labels that the card
        does not have.
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
        """[i, j, k] the labels on the scan's own grid (a view). Raises ValueError where planes are missing."""
        self._check_complete()
        return self._grid.unorient(self._labels)

    @property
    def scores(self) -> NDArray[np.float32]:
        """[score, i, j, k] on the scan's own grid, divided by the card's scale; ValueError unless they were kept."""
        if self._scores is None:
            raise ValueError("scores are kept only with keep_scores=True")
        return self._grid.unorient(self._scores)

    def _check_complete(self) -> None:
        if self._received != self._grid.shape[0]:
            raise ValueError(f"{self._received} planes were fed of a grid {self._grid.shape}")

    def _finish(self, first: int, last: int, planes: NDArray[np.float32]) -> None:
        """The output planes [first, last), whose source planes are all there."""
        source = self._source(self._depth.span(first, last), planes)
        depth = None if self._taps[0] is None else self._depth.part(first, last)
        scores = _blended(source, (depth, self._taps[1], self._taps[2]), self._order)
        place = (slice(first, last), *self._strip.within(3)[1:])
        self._labels[place] = self._decide(scores)
        if self._scores is not None:
            np.divide(scores, self._scale, out=self._scores[(slice(None), *place)])

    def _source(self, span: slice, planes: NDArray[np.float32]) -> NDArray[np.float32]:
        """The prepared planes of `span`: a view where all of them came with the latest call."""
        start = self._received - planes.shape[1]
        if span.start >= start:
            return planes[:, span.start - start : span.stop - start]
        kept = self._kept[:, span.start - start + self._kept.shape[1] :]
        return np.concatenate((kept, planes[:, : max(span.stop - start, 0)]), axis=1)

    def _keep(self, planes: NDArray[np.float32]) -> None:
        """Copies the planes that an output still to come needs (one or two, unless hardly any were fed)."""
        needed = int(self._depth.low[self._done]) if self._done < len(self._depth.low) else self._received
        self._kept = self._source(slice(min(needed, self._received), self._received), planes).copy()


def activator(card: Card) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """The function that stitched scores [score, ...] go through first: softmax, sigmoid, or none."""
    if card.output.activation == "softmax":
        return _softmax
    return _sigmoid if card.output.activation == "sigmoid" else lambda scores: scores


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    shares: NDArray[np.float32] = logits - logits.max(axis=0)  # from the largest down, nothing overflows
    np.exp(shares, out=shares)
    shares /= shares.sum(axis=0)
    return shares


def _sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    shares: NDArray[np.float32] = -logits
    with np.errstate(over="ignore"):  # exp of a large number is infinite, and its share 0, as it should be
        np.exp(shares, out=shares)
    shares += 1
    return np.divide(1, shares, out=shares)


def restore_bytes(grid: Grid, card: Card, planes: int, threads: int | None = None, strip: Strip | None = None) -> int:
    """Bytes that a Restorer takes at its peak when it is fed up to `planes` planes (of `strip`) at a time."""
    channels, threads = card.output.scores, threads or usable_threads()
    strip = strip or whole(grid.shape, grid.oriented)
    prepared = math.prod(strip.narrowed(grid.shape)[1:])
    labels = math.prod(grid.oriented) * label_type(card).itemsize + BOOKKEEPING
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
    """The scan in `count` strips along `axis` (1 or 2), each with the prepared rows that its labels depend on."""
    if count == 1:
        return (whole(grid.shape, grid.oriented),)
    taps = _inverse_taps(grid, nearest=card.output.kind == "labels")[axis]
    parts = spans(grid.oriented[axis], count)
    reads = [taps.span(*part) if taps else slice(*part) for part in parts]
    return tuple(Strip(axis, (read.start, read.stop), part) for read, part in zip(reads, parts, strict=True))


def decider(card: Card) -> Decide:
    """The function that makes of scores [score, ...] the labels [...], in the type of `label_type`.

    Classes: the largest score, the first of equal ones. Regions and foreground: wherever the probability exceeds one
    half (the logit 0), later regions over earlier ones, background elsewhere. Labels: the class of that index.
    """
    values = np.array([label.value for label in card.labels], label_type(card))
    plain = card.output.kind == "logits" and card.output.activation == "none"
    threshold = 0.0 if plain else 0.5 * card.output.scale
    if card.output.kind == "labels":
        return lambda scores: _indexed(scores[0], values)
    if card.output.kind == "foreground":
        background = values[0] if len(values) > 1 else values.dtype.type(0)
        return lambda scores: np.where(scores[0] > threshold, values[-1], background)
    if card.regions:
        return lambda scores: _layered(scores, values, threshold)
    return lambda scores: _largest(scores, values)


def label_type(card: Card) -> np.dtype[Any]:
    """uint8, or uint16 where a label's value exceeds 255."""
    return np.dtype(np.uint16 if max(label.value for label in card.labels) > 255 else np.uint8)


def _largest(scores: NDArray[np.float32], values: NDArray[Any]) -> NDArray[Any]:
    """The value of the largest score: a running maximum, since `argmax` over the first axis leaps through memory."""
    best = scores[0]
    winner = np.zeros(best.shape, np.uint8 if len(values) <= 256 else np.uint16)
    beaten, running = np.empty(best.shape, winner.dtype), None
    for index in range(1, len(values)):
        np.multiply(scores[index] > best, winner.dtype.type(index), out=beaten)
        np.maximum(winner, beaten, out=winner)  # indices only grow, so the latest winner is the largest
        if index + 1 < len(values):
            best = running = np.maximum(best, scores[index], out=running)
    return _looked_up(winner, values)


def _layered(scores: NDArray[np.float32], values: NDArray[Any], threshold: float) -> NDArray[Any]:
    result = np.zeros(scores.shape[1:], values.dtype)
    for score, value in zip(scores, values, strict=True):
        np.copyto(result, value, where=score > threshold)
    return result


def _indexed(indices: NDArray[np.float32], values: NDArray[Any]) -> NDArray[Any]:
    whole = np.rint(indices).astype(np.int64)
    if whole.min(initial=0) < 0 or whole.max(initial=0) >= len(values):
        raise ModelError(f"expected labels 0 to {len(values) - 1} from the model, found {whole.min()} to {whole.max()}")
    return values.take(whole)


def _looked_up(winner: NDArray[Any], values: NDArray[Any]) -> NDArray[Any]:
    if np.array_equal(values, np.arange(len(values))):
        return winner.astype(values.dtype, copy=False)
    return values.take(winner)


def _inverse_taps(grid: Grid, nearest: bool) -> tuple[Taps | None, ...]:
    """The way back of each axis; None where it is the identity. Class indices take the nearest voxel."""
    inverse = [axis.inverse for axis in grid.maps]
    if not nearest:
        return tuple(None if axis.identity else axis.taps for axis in inverse)
    none = np.float32(0)
    return tuple(
        None if axis.identity else Taps(axis.nearest, axis.nearest, np.full(axis.target, none)) for axis in inverse
    )


def _plain_taps(size: int) -> Taps:
    """Taps of an axis that stays as it is, so that planes are counted in one way only."""
    index = np.arange(size)
    return Taps(index, index, np.zeros(size, np.float32))


def _strip_taps(taps: tuple[Taps | None, ...], strip: Strip) -> tuple[Taps | None, ...]:
    """`taps` with those of the cut axis for the strip's own labels, counted from its first row."""
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
    """The axes, the one first that shrinks most when whole planes are worked on.

    Axes in another order round otherwise, so it is the same for every strip.
    """
    step = _planes_a_job(grid, channels, whole(grid.shape, grid.oriented))
    growth = (step / _sources(grid, step), *(grid.oriented[axis] / grid.shape[axis] for axis in (1, 2)))
    return tuple(sorted(range(3), key=lambda axis: growth[axis]))


def _sources(grid: Grid, step: int) -> int:
    """Prepared planes under `step` output planes, at most."""
    return min(math.ceil((step - 1) * grid.maps[0].inverse.scale) + 2, grid.shape[0])


def _planes_a_job(grid: Grid, channels: int, strip: Strip) -> int:
    """Output planes worked on at once: as many as a core's cache holds with all their scores."""
    prepared, oriented = strip.narrowed(grid.shape), strip.narrowed_target(grid.oriented)
    return max(SLAB_BYTES // (4 * channels * max(math.prod(prepared[1:]), math.prod(oriented[1:]))), 1)
