"""Runs a whole scan tile by tile with MONAI's own sliding window.

Reference and engine go through the same code, so that what differs is the engine. The client's stitcher is compared
with this one.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from monai.inferers.utils import sliding_window_inference
from torch import Tensor, nn

from voxtile.tensor_types import NUMPY_TYPES
from voxtile_build.arrays import Array, Runner
from voxtile_build.evaluation.samples import Scan
from voxtile_build.evaluation.tiles import tile_inputs
from voxtile_build.spec.input import PADDING
from voxtile_build.spec.spec import Spec


def torch_runner(wrapper: nn.Module) -> Runner:
    """The wrapped network (see `graph.wrapper`) in fp32 PyTorch, called as an engine is called."""

    def run(inputs: Any) -> Array:
        given = [inputs[name] for name in ("roi", "intensity") if name in inputs]
        tensors = [torch.from_numpy(np.array(array)) for array in given]
        with torch.inference_mode():
            scores: Array = wrapper(*tensors).numpy()
        return scores

    return run


def segment(scan: Scan, spec: Spec, run: Runner, batch: int) -> Array:
    """Stitched scores of a whole scan.

    Args:
        scan: the scan.
        spec: the model.
        run: what computes the scores of tiles.
        batch: tiles in one run.

    Returns:
        [score, *spatial] float32; where scores are labels, votes [label, *spatial].
    """
    volume = torch.from_numpy(scan.volume.astype(np.float32))[None]
    if spec.tiling.slice_axis is not None:
        # Slices become the batch: [slice, channel, *plane].
        volume = volume.movedim(spec.tiling.slice_axis + 2, 0).squeeze(1)
    scores = sliding_window_inference(
        volume,
        spec.tiling.over(volume.shape[2:]).roi_size,
        batch,
        Predictor(spec, run, scan.statistics),
        overlap=spec.tiling.overlaps,
        mode=spec.tiling.mode,
        sigma_scale=spec.tiling.sigma_scale,
        padding_mode=spec.tiling.padding_mode,
        cval=PADDING[spec.input.dtype] if spec.tiling.padding_mode == "constant" else 0.0,
    )
    if not isinstance(scores, Tensor):
        raise TypeError(f"expected one tensor of scores, found {type(scores).__name__}")
    if spec.tiling.slice_axis is not None:
        return np.asarray(scores.movedim(0, spec.tiling.slice_axis + 1).numpy())
    return np.asarray(scores[0].numpy())


def windows(scan: Scan, spec: Spec) -> int:
    """How many windows `segment` runs for a scan."""
    shape = scan.volume.shape[1:]
    axis, slices = spec.tiling.slice_axis, 1
    if axis is not None:
        slices, shape = shape[axis], (*shape[:axis], *shape[axis + 1 :])
    rois = spec.tiling.over(shape).roi_size
    starts = (
        1 if size <= roi else 1 + math.ceil((size - roi) / max(int(roi * (1 - overlap)), 1))
        for size, roi, overlap in zip(shape, rois, spec.tiling.overlaps, strict=True)
    )
    return slices * math.prod(starts)


class Predictor(nn.Module):
    """What MONAI calls: windows [batch, channel, *roi] float32 -> their scores [batch, score, *roi] float32."""

    def __init__(self, spec: Spec, run: Runner, statistics: Array) -> None:
        super().__init__()
        self.spec, self.run, self.statistics = spec, run, statistics

    def forward(self, windows: Tensor) -> Tensor:
        rois = windows.numpy().astype(NUMPY_TYPES[self.spec.input.dtype])
        statistics = np.broadcast_to(self.statistics, (len(rois), *self.statistics.shape))
        scores = torch.from_numpy(np.ascontiguousarray(self.run(tile_inputs(self.spec, rois, statistics))))
        if self.spec.output.scores != "labels":
            return scores.to(torch.float32)
        votes = nn.functional.one_hot(scores[:, 0].long(), len(self.spec.output.labels))
        return votes.movedim(-1, 1).to(torch.float32)
