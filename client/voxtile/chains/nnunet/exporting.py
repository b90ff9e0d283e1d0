"""nnU-Net v2's export: logits are resampled to the scan's grid and become labels, slab by slab and block by block.

Follows `convert_predicted_logits_to_segmentation_with_correct_shape` of nnunetv2 2.8.1. nnU-Net resamples all classes
to the full grid before it takes the argmax. Here the output grid is finished in small blocks, so that all classes never
exist on it at once. Knows nothing of tiles or files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.chains.nnunet.axis_zoom import AxisZoom, axis_zoom
from voxtile.chains.nnunet.block_argmax import REGION_LOGIT, TILE, BlockLabels, Heads
from voxtile.chains.nnunet.plan import NnunetPlan
from voxtile.chains.nnunet.preprocessing import GridProperties, box_slices
from voxtile.chains.scores import sigmoid, softmax
from voxtile.errors import ModelError
from voxtile.machine.cores import usable_cores
from voxtile.tiling.strips import Strip, spans, whole

SLAB_ROWS = 32
"""Output planes that are finished together, at most."""
BUFFER_BYTES = 256 * 2**20
"""Limit on the logits that wait, between two calls of add_planes, for a slab to be complete."""
UINT8_FOREGROUND = 255
"""From this many foreground labels on, nnU-Net writes uint16."""


def label_dtype(n_labels: int) -> type[np.uint8] | type[np.uint16]:
    """Returns the type of a label map with `n_labels` labels, background included."""
    return np.uint8 if n_labels - 1 < UINT8_FOREGROUND else np.uint16


def _heads(regions_class_order: Sequence[int] | None, n_labels: int) -> Heads:
    if regions_class_order is None:
        return Heads(n_labels)
    order = tuple(int(label) for label in regions_class_order)
    return Heads(len(order), order)


def _zooms(properties: GridProperties, plan: NnunetPlan) -> tuple[AxisZoom | None, ...]:
    rule = plan.probabilities_resampling
    separate = rule.separate_axis(properties.target_spacing, properties.spacing)
    sizes = zip(properties.shape_after_resampling, properties.shape_after_cropping, strict=True)
    orders = rule.axis_orders(separate)
    if rule.family == "none" and properties.shape_after_resampling != properties.shape_after_cropping:
        raise ModelError(
            f"the plan resamples scans but not probabilities: {properties.shape_after_resampling} voxels cannot "
            f"become {properties.shape_after_cropping}; nnU-Net cannot export such a model either"
        )
    return tuple(axis_zoom(old, new, order, rule.rule, False) for (old, new), order in zip(sizes, orders, strict=True))


class _Waiting:
    """Planes of logits [class, n, y, x] that came and are still needed, as one run along axis 1."""

    def __init__(self) -> None:
        self.start = 0
        self._pieces: list[NDArray[Any]] = []

    @property
    def stop(self) -> int:
        """One past the last plane that came."""
        return self.start + sum(int(piece.shape[1]) for piece in self._pieces)

    def add(self, planes: NDArray[Any]) -> None:
        """Takes the next planes, without a copy."""
        self._pieces.append(planes)

    def rows(self, wanted: slice) -> NDArray[Any]:
        """Returns the planes `wanted`, a view where they came in one piece."""
        found, first = [], self.start
        for piece in self._pieces:
            part = piece[:, max(wanted.start - first, 0) : max(wanted.stop - first, 0)]
            found += [part] if part.shape[1] else []
            first += piece.shape[1]
        return found[0] if len(found) == 1 else np.concatenate(found, axis=1)

    def keep_from(self, row: int) -> None:
        """Drops the planes before `row` and copies the rest, so that the caller may overwrite its array."""
        rest = [self.rows(slice(row, self.stop))] if row < self.stop else []
        self.start = min(row, self.stop)
        self._pieces = [part if part.base is None else part.copy() for part in rest]


class LabelExporter:
    """Takes logits in planes along axis 0 of the network's grid, and returns the label map on the scan's own grid.

    It holds the label map, the planes that the next slab needs, and a few blocks for each thread. A plan that resamples
    probabilities by order 3 is the exception: nnU-Net clips to each class's range over the whole grid, so all planes
    are kept until `finish`.

    Args:
        properties: the way back to the scan.
        plan: the model's plan.
        n_labels: the number of labels, background included.
        regions_class_order: for a model trained on regions, the label of each region, in the order of writing.
        threads: threads that share the blocks; by default the usable cores.

    Raises:
        ModelError: nnU-Net could not export with this plan.
    """

    def __init__(
        self,
        properties: GridProperties,
        plan: NnunetPlan,
        *,
        n_labels: int,
        regions_class_order: Sequence[int] | None = None,
        threads: int | None = None,
    ) -> None:
        self._properties, self._plan = properties, plan
        self._heads = _heads(regions_class_order, n_labels)
        self._threads = threads or usable_cores()
        zooms = _zooms(properties, plan)
        self._blocks = BlockLabels(zooms, properties.shape_after_cropping, self._heads)
        self._streams = _streams(zooms)
        self._labels = np.zeros(properties.shape_before_cropping, label_dtype(n_labels))
        self._target = self._labels[box_slices(properties.bbox)]
        self._step = _slab_rows(properties, self._heads.count)
        self._start(whole(properties.shape_after_resampling, self._target.shape))

    def start_strip(self, strip: Strip) -> None:
        """Announces that the planes that follow belong to `strip`, one of `export_strips`, from its first plane on.

        Raises:
            ModelError: planes of the strip before are missing.
        """
        if self._waiting.stop:
            self._check_complete()
        self._start(strip)

    def _start(self, strip: Strip) -> None:
        self._strip, self._waiting, self._done = strip, _Waiting(), 0

    def add_planes(self, planes: NDArray[Any]) -> None:
        """Takes the next `planes` [class, n, y, x] of logits; the caller may overwrite the array afterwards.

        Raises:
            ModelError: the planes have another shape, or there are more than the grid has.
        """
        depth, height, width = self._strip.narrowed(self._properties.shape_after_resampling)
        expected = (self._heads.count, height, width)
        if planes.ndim != 4 or (planes.shape[0], *planes.shape[2:]) != expected:
            raise ModelError(
                f"expected scores of shape [{expected[0]}, planes, {height}, {width}], got {planes.shape}; the model "
                "on the server and its card do not belong together"
            )
        self._waiting.add(planes)
        if self._waiting.stop > depth:
            raise ModelError(f"expected {depth} planes of scores, got {self._waiting.stop}")
        if self._streams:
            self._advance()
        else:
            self._waiting.keep_from(0)

    def _advance(self) -> None:
        total = self._target.shape[0]
        while self._done < total:
            stop = min(self._done + self._step, total)
            reads = self._blocks.reads(0, self._done, stop)
            if reads.stop > self._waiting.stop:
                break
            logits = self._waiting.rows(reads)
            self._blocks.fill((self._done, stop), logits, self._target[self._done : stop], self._threads, self._strip)
            self._done = stop
        needed = self._blocks.reads(0, self._done, self._done + 1).start if self._done < total else self._waiting.stop
        self._waiting.keep_from(needed)

    def finish(self) -> NDArray[Any]:
        """Returns the label map [z, y, x] on the scan's grid, uint8 or uint16.

        Raises:
            ModelError: planes are missing.
        """
        self._check_complete()
        if not self._streams:
            _label_whole(
                self._waiting.rows(slice(0, self._waiting.stop)),
                self._properties,
                self._plan,
                self._heads,
                self._target,
            )
        return np.ascontiguousarray(self._labels.transpose(self._plan.transpose_backward))

    def _check_complete(self) -> None:
        depth = self._properties.shape_after_resampling[0]
        if self._waiting.stop != depth:
            raise ModelError(f"expected {depth} planes of scores, got {self._waiting.stop}")


def _slab_rows(properties: GridProperties, scores: int) -> int:
    """Output planes that are finished together. The same for every strip, since products of matrices depend on it."""
    depth, height, width = properties.shape_after_resampling
    planes = BUFFER_BYTES // (scores * height * width * 4)
    return int(np.clip(planes * properties.shape_after_cropping[0] // depth, 1, SLAB_ROWS))


def export_bytes(properties: GridProperties, plan: NnunetPlan, scores: int, strip: Strip) -> int:
    """Returns the bytes that a `LabelExporter` takes at its peak for `strip`, its labels apart.

    These are the planes of a slab, three times: kept from the call before, joined, and kept for the next call. For a
    plan that cannot be exported slab by slab they are all logits while they are joined, and three volumes of one class
    on the scan's grid.
    """
    depth, height, width = strip.narrowed(properties.shape_after_resampling)
    plane = 4 * scores * height * width
    if not _streams(_zooms(properties, plan)):
        return 2 * depth * plane + 3 * 4 * math.prod(properties.shape_after_cropping)
    support = math.ceil(_slab_rows(properties, scores) * depth / properties.shape_after_cropping[0]) + 2
    return 3 * min(support, depth) * plane


def _streams(zooms: Sequence[AxisZoom | None]) -> bool:
    """Whether a label depends only on the logits around it."""
    return all(zoom is None or zoom.order < 3 for zoom in zooms)


def export_strips(properties: GridProperties, plan: NnunetPlan, axis: int, count: int) -> tuple[Strip, ...]:
    """Returns the network's grid in `count` strips along `axis` (1 or 2), cut between blocks of labels.

    There are fewer strips where there are fewer blocks, and one for a plan that resamples probabilities by order 3. The
    blocks are those of the uncut grid, so that every product of matrices in them is the same to the last bit.
    """
    zooms, target = _zooms(properties, plan), properties.shape_after_cropping
    if count == 1 or not _streams(zooms):
        return (whole(properties.shape_after_resampling, target),)
    zoom, parts = zooms[axis], spans(target[axis], count, TILE)
    reads = [zoom.support(*part) if zoom else slice(*part) for part in parts]
    return tuple(Strip(axis, (read.start, read.stop), part) for read, part in zip(reads, parts, strict=True))


def _restored(scores: NDArray[Any], properties: GridProperties, plan: NnunetPlan) -> NDArray[np.float32]:
    resampled = plan.probabilities_resampling.apply(
        scores, properties.shape_after_cropping, properties.target_spacing, properties.spacing
    )
    return np.asarray(resampled, np.float32)


def _label_whole(
    logits: NDArray[Any], properties: GridProperties, plan: NnunetPlan, heads: Heads, out: NDArray[Any]
) -> None:
    """Labels `out` class by class over the whole grid, with two volumes of scores at a time."""
    best = None
    for index in range(heads.count):
        score = _restored(np.asarray(logits[index : index + 1], np.float32), properties, plan)[0]
        if heads.regions_class_order is not None:
            out[score > REGION_LOGIT] = heads.regions_class_order[index]
        elif best is None:
            best = score.copy()
        else:
            np.copyto(out, out.dtype.type(index), where=score > best)
            np.maximum(best, score, out=best)


def export_probabilities(
    logits: NDArray[Any], properties: GridProperties, plan: NnunetPlan, *, regions: bool = False
) -> NDArray[np.float32]:
    """Returns probabilities as nnU-Net writes them into its .npz: float32 [class, z, y, x] on the scan's grid.

    Outside the crop the probability is 1 for background and 0 for everything else.

    Args:
        logits: [class, z, y, x] on the network's grid.
        properties: the way back to the scan.
        plan: the model's plan.
        regions: whether each class goes through a sigmoid of its own, instead of a softmax over all.
    """
    restored = _restored(logits, properties, plan)
    inside = sigmoid(restored) if regions else softmax(restored)
    full = np.zeros((len(inside), *properties.shape_before_cropping), np.float32)
    if not regions:
        full[0] = 1
    full[(slice(None), *box_slices(properties.bbox))] = inside
    return np.ascontiguousarray(full.transpose(0, *(axis + 1 for axis in plan.transpose_backward)))
