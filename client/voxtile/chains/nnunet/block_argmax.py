"""Labels small blocks of an output grid from the logits around them, without all classes on that grid.

Where logits are interpolated linearly, the value of a class is a convex combination of its neighbours. A class whose
highest logit around a block lies below a value that some other class is certain to reach cannot win there. It is not
resampled at all, and the labels are the same. Where nothing is resampled, blocks are runs of whole planes.

Knows nothing of cropping, spacing or plans.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.chains.nnunet.axis_zoom import AxisZoom, Scratch, zoom_first_axis
from voxtile.chains.nnunet.threads import run_all
from voxtile.tiling.strips import Span, Strip

REGION_LOGIT = 1.5 * 2.0**-24
"""In float32 the sigmoid exceeds one half only above this logit; below it, 1/(1+exp(-x)) rounds to 0.5."""
ROUNDING = 1e-5
"""Relative margin under a bound, far above float32's rounding of an interpolated value."""
TILE = 32
"""Edge of a block in the plane. Smaller blocks leave out more classes, but below this size the calls cost more."""
AT_ONCE = 1 << 18
"""Voxels labelled at a time where nothing is resampled: their best scores stay in the cache."""
MOST_LEADERS = 6
"""How many of the strongest classes are combined in search of a bound; more of them rarely meet in one block."""


@dataclass(frozen=True)
class Heads:
    """What the scores of a voxel mean.

    Attributes:
        count: the number of scores.
        regions_class_order: None where score i belongs to label i and the largest wins; else the label of each region,
            of which later ones overwrite earlier ones.
    """

    count: int
    regions_class_order: tuple[int, ...] | None = None


def candidates(highest: NDArray[Any], block: NDArray[Any]) -> NDArray[np.int64]:
    """Returns the classes that can win somewhere in a block, however it is linearly interpolated.

    At every voxel, the best class is at least the mean of any set of classes. So the block's minimum of such a mean
    bounds the winner from below.

    Args:
        highest: [class] the maximum of each class in the block.
        block: [class, n, y, x] float32 logits.
    """
    ranked = np.argsort(-highest)
    total = np.zeros(block.shape[1:], np.float32)
    bound = -np.inf
    for count, leader in enumerate(ranked[:MOST_LEADERS], 1):
        total += block[leader]
        bound = max(bound, float(total.min()) / count)
        margin = ROUNDING * max(abs(bound), float(np.abs(highest[ranked[0]])))
        left = np.flatnonzero(~(highest < bound - margin))
        if left.size <= count:
            break
    return left


class BlockLabels:
    """Labels blocks of the output grid from the logits around them.

    Args:
        zooms: for each axis its zoom, of order 0 or 1; None where it is not resampled.
        shape: voxels of the output grid along z, y, x.
        heads: what the scores mean.
    """

    def __init__(self, zooms: Sequence[AxisZoom | None], shape: Sequence[int], heads: Heads) -> None:
        self.zooms, self.shape, self.heads = tuple(zooms), tuple(shape), heads
        # Where nothing is resampled, leaving classes out costs more than it saves (measured with 2 to 60 classes).
        self._as_they_are = all(zoom is None for zoom in zooms)

    def reads(self, axis: int, start: int, stop: int) -> slice:
        """Returns the input rows along `axis` that the output rows start … stop-1 depend on."""
        zoom = self.zooms[axis]
        return slice(start, stop) if zoom is None else zoom.support(start, stop)

    def spans(self, axis: int, strip: Strip) -> Iterable[Span]:
        """Returns the blocks of an axis that lie in `strip`; they are those of the uncut grid."""
        first, last = strip.target if axis == strip.axis else (0, self.shape[axis])
        return pairwise([*range(first, last, TILE), last])

    def _reads_in(self, axis: int, span: Span, strip: Strip) -> slice:
        """The input rows that a block reads, counted from the strip's first row."""
        reads, base = self.reads(axis, *span), strip.rows[0] if axis == strip.axis else 0
        return slice(reads.start - base, reads.stop - base)

    def fill(self, rows: Span, logits: NDArray[Any], out: NDArray[Any], threads: int, strip: Strip) -> None:
        """Labels some output planes within a strip.

        Args:
            rows: the output planes.
            logits: [class, n, y, x] the strip's logits of the input planes that `rows` read.
            out: [rows, y', x'] the whole output planes, of which the strip's part is written.
            threads: threads that share the blocks.
            strip: the strip.
        """

        def planes(span: Span) -> None:
            scores, target = logits[:, slice(*span)], out[(slice(*span), *strip.within(3)[1:])]
            self._fill_block(np.asarray(scores, np.float32), tuple((0, size) for size in target.shape), target)

        def block(spans: tuple[Span, Span]) -> None:
            y, x = spans
            around = logits[:, :, self._reads_in(1, y, strip), self._reads_in(2, x, strip)]
            self._fill_block(np.ascontiguousarray(around, np.float32), (rows, y, x), out[:, slice(*y), slice(*x)])

        if self._as_they_are:
            step = max(AT_ONCE // math.prod(logits.shape[2:]), 1)
            run_all(planes, pairwise([*range(0, len(out), step), len(out)]), threads)
        else:
            run_all(block, product(self.spans(1, strip), self.spans(2, strip)), threads)

    def _fill_block(self, block: NDArray[Any], spans: tuple[Span, ...], out: NDArray[Any]) -> None:
        if self.heads.regions_class_order is None:
            self._fill_argmax(block, spans, out)
        else:
            self._fill_regions(block, spans, out, self.heads.regions_class_order)

    def _fill_argmax(self, block: NDArray[Any], spans: tuple[Span, ...], out: NDArray[Any]) -> None:
        able = range(len(block)) if self._as_they_are else candidates(block.reshape(len(block), -1).max(1), block)
        out[...] = able[0]
        if len(able) == 1:
            return
        scratch = Scratch(np.float32)
        best = self._zoomed(block[able[0]], spans, scratch).copy()
        for label in able[1:]:
            score = self._zoomed(block[label], spans, scratch)
            np.copyto(out, out.dtype.type(label), where=score > best)
            np.maximum(best, score, out=best)

    def _fill_regions(
        self, block: NDArray[Any], spans: tuple[Span, ...], out: NDArray[Any], order: tuple[int, ...]
    ) -> None:
        out[...] = 0
        scratch = Scratch(np.float32)
        for region, label in zip(block, order, strict=True):
            if region.max() <= 0:
                continue
            if region.min() > REGION_LOGIT * (1 + ROUNDING):
                out[...] = label
                continue
            inside = self._zoomed(region, spans, scratch) > REGION_LOGIT
            np.copyto(out, out.dtype.type(label), where=inside)

    def _zoomed(self, block: NDArray[Any], spans: tuple[Span, ...], scratch: Scratch) -> NDArray[Any]:
        slab = zoom_first_axis(block, self.zooms[0], *spans[0], scratch)
        slab = _zoom_middle_part(slab, self.zooms[1], *spans[1], scratch)
        return _zoom_last_part(slab, self.zooms[2], *spans[2], scratch)


def _zoom_middle_part(
    slab: NDArray[Any], zoom: AxisZoom | None, start: int, stop: int, scratch: Scratch
) -> NDArray[Any]:
    """Output rows start … stop-1 along axis 1 [n, stop - start, x], from `slab` [n, support, x]."""
    if zoom is None:
        return slab
    if zoom.order == 0:
        return slab[:, zoom.nearest(start, stop)]
    out = scratch.array("middle", slab.shape[0], stop - start, slab.shape[2])
    return np.matmul(zoom.block(start, stop), slab, out=out)


def _zoom_last_part(slab: NDArray[Any], zoom: AxisZoom | None, start: int, stop: int, scratch: Scratch) -> NDArray[Any]:
    """Output rows start … stop-1 along axis 2 [n, y, stop - start], from `slab` [n, y, support]."""
    if zoom is None:
        return slab
    if zoom.order == 0:
        return slab[:, :, zoom.nearest(start, stop)]
    out = scratch.array("last", *slab.shape[:2], stop - start)
    np.matmul(slab.reshape(-1, slab.shape[2]), zoom.block(start, stop).T, out=out.reshape(-1, stop - start))
    return out
