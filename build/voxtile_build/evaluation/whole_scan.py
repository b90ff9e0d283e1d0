"""A whole scan through any runner, tile by tile, with MONAI's own sliding window: the same for both sides of a
comparison, so that what differs is the engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from monai.inferers.utils import sliding_window_inference
from torch import Tensor, nn

from voxtile_build.arrays import Array, Runner
from voxtile_build.evaluation.samples import NUMPY_DTYPES, Scan, tile_inputs
from voxtile_build.spec.input import PADDING
from voxtile_build.spec.spec import Spec


def torch_runner(wrapper: nn.Module) -> Runner:
    """The wrapped network (see `graph.wrapper`) in fp32 PyTorch, called as an engine is."""

    def run(inputs: Any) -> Array:
        given = [inputs[name] for name in ("roi", "intensity") if name in inputs]
        tensors = [torch.from_numpy(np.array(array)) for array in given]
        with torch.inference_mode():
            scores: Array = wrapper(*tensors).numpy()
        return scores

    return run


def segment(scan: Scan, spec: Spec, run: Runner, batch: int) -> Array:
    """Stitched scores [score, *spatial], float32; votes a label [label, *spatial] where scores are labels."""
    volume = torch.from_numpy(scan.volume.astype(np.float32))[None]
    if spec.tiling.slice_axis is not None:
        # Slices become the batch: [slice, channel, *plane].
        volume = volume.movedim(spec.tiling.slice_axis + 2, 0).squeeze(1)
    scores = sliding_window_inference(
        volume,
        spec.tiling.over(volume.shape[2:]).roi_size,
        batch,
        Predictor(spec, run, scan.figures),
        overlap=spec.tiling.overlaps,
        mode=spec.tiling.mode,
        sigma_scale=spec.tiling.sigma_scale,
        padding_mode="constant",
        cval=PADDING[spec.input.dtype],
    )
    if not isinstance(scores, Tensor):
        raise TypeError(f"expected one tensor of scores, found {type(scores).__name__}")
    if spec.tiling.slice_axis is not None:
        return np.asarray(scores.movedim(0, spec.tiling.slice_axis + 1).numpy())
    return np.asarray(scores[0].numpy())


class Predictor(nn.Module):
    """What MONAI calls with windows [batch, channel, *roi], float32; gives their scores, float32."""

    def __init__(self, spec: Spec, run: Runner, figures: Array) -> None:
        super().__init__()
        self.spec, self.run, self.figures = spec, run, figures

    def forward(self, windows: Tensor) -> Tensor:
        rois = windows.numpy().astype(NUMPY_DTYPES[self.spec.input.dtype])
        figures = np.broadcast_to(self.figures, (len(rois), *self.figures.shape))
        scores = torch.from_numpy(np.ascontiguousarray(self.run(tile_inputs(self.spec, rois, figures))))
        if self.spec.output.scores != "labels":
            return scores.to(torch.float32)
        votes = nn.functional.one_hot(scores[:, 0].long(), len(self.spec.output.labels))
        return votes.movedim(-1, 1).to(torch.float32)
