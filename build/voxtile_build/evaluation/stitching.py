"""A whole scan tile by tile without PyTorch: MONAI's sliding window again, for where an entry is verified."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from voxtile_build.arrays import Array, Runner
from voxtile_build.evaluation.evaluate import as_votes
from voxtile_build.evaluation.samples import NUMPY_DTYPES, Scan, tile_inputs
from voxtile_build.spec.input import PADDING
from voxtile_build.spec.spec import Spec
from voxtile_build.spec.tiling import Tiling

Start = tuple[int, ...]

# MONAI's floor of the Gaussian's weights.
LOWEST_WEIGHT = 1e-3


def stitch(scan: Scan, spec: Spec, run: Runner, batch: int) -> Array:
    """Stitched scores [score, *spatial], float32; votes a label [label, *spatial] where scores are labels."""
    axis = spec.tiling.slice_axis
    if axis is None:
        return _stitch_one(scan.volume, scan.figures, spec, run, batch)
    slices = [_stitch_one(part, scan.figures, spec, run, batch) for part in np.moveaxis(scan.volume, axis + 1, 0)]
    return np.stack(slices, axis=axis + 1)


def _stitch_one(volume: Array, figures: Array, spec: Spec, run: Runner, batch: int) -> Array:
    """`volume` [channel, *spatial] has as many axes as the ROI."""
    tiling = spec.tiling.over(volume.shape[1:])
    roi = tiling.roi_size
    missing = [max(size - found, 0) for size, found in zip(roi, volume.shape[1:], strict=True)]
    # As MONAI does, the odd voxel behind.
    margins = [(0, 0), *((lack // 2, lack - lack // 2) for lack in missing)]
    padded = np.pad(volume, margins, constant_values=np.asarray(PADDING[spec.input.dtype], volume.dtype))
    weights = importance(tiling)
    total: Array = np.zeros(0, np.float32)
    weight = np.zeros(padded.shape[1:], np.float32)
    for starts in _batches(window_starts(padded.shape[1:], tiling), batch):
        rois = np.stack([padded[(slice(None), *_window(start, roi))] for start in starts])
        scores = run(tile_inputs(spec, rois.astype(NUMPY_DTYPES[spec.input.dtype]), _repeated(figures, len(rois))))
        for start, found in zip(starts, scores, strict=True):
            votes = as_votes(found, spec.output).astype(np.float32)
            if not total.size:
                total = np.zeros((len(votes), *weight.shape), np.float32)
            total[(slice(None), *_window(start, roi))] += votes * weights
            weight[_window(start, roi)] += weights
    inner = tuple(slice(lack // 2, lack // 2 + size) for lack, size in zip(missing, volume.shape[1:], strict=True))
    return np.asarray((total / weight)[(slice(None), *inner)])


def importance(tiling: Tiling) -> Array:
    """Weights [*roi], float32: ones, or MONAI's Gaussian with its floor."""
    if tiling.mode == "constant":
        return np.ones(tiling.roi_size, np.float32)
    weights = np.ones((1,) * len(tiling.roi_size), np.float32)
    for axis, (size, share) in enumerate(zip(tiling.roi_size, tiling.sigmas, strict=True)):
        places = np.arange(size, dtype=np.float32) - np.float32((size - 1) / 2)
        line = np.exp(-(places**2) / np.float32(2 * (share * size) ** 2))
        weights = weights * line.reshape([-1 if other == axis else 1 for other in range(len(tiling.roi_size))])
    return np.maximum(weights, np.float32(max(float(weights.min()), LOWEST_WEIGHT)))


def window_starts(shape: Sequence[int], tiling: Tiling) -> Iterator[Start]:
    """First voxel of every window over a volume [*shape] that is at least as large as the ROI, in C order."""
    axes = []
    for size, roi, overlap in zip(shape, tiling.roi_size, tiling.overlaps, strict=True):
        # The float expression is MONAI's own: int(100 * (1 - .9)) is 9.
        step = roi if roi == size else max(int(roi * (1 - overlap)), 1)
        count = max(-(-(size - roi) // step), 0) + 1
        axes.append([min(index * step, size - roi) for index in range(count)])
    return itertools.product(*axes)


def _window(start: Start, roi: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(first, first + size) for first, size in zip(start, roi, strict=True))


def _repeated(figures: Array, count: int) -> Array:
    return np.repeat(figures[None], count, axis=0)


def _batches(starts: Iterator[Start], size: int) -> Iterator[tuple[Start, ...]]:
    while batch := tuple(itertools.islice(starts, size)):
        yield batch
