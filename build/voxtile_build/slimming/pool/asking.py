"""Asks the teacher about a patch, and about its mirror images where they would say something new.

Refuses answers that nothing could be learnt from. Knows no files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from voxtile_build.arrays import Array
from voxtile_build.errors import SlimmingError
from voxtile_build.evaluation import metrics
from voxtile_build.slimming.pool import mirrors
from voxtile_build.slimming.pool.augment import Patch
from voxtile_build.slimming.pool.labeller import Labeller
from voxtile_build.slimming.pool.layout import Layout
from voxtile_build.spec.output import Output

HIGHEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Answer:
    """A labelled patch.

    Attributes:
        image: [channel, *roi] in the layout's type, what the network sees.
        scores: [class, *roi] float32, within what fp16 holds.
        masks: [class, *roi] bool, what they come to.
    """

    image: Array
    scores: Array
    masks: Array


@dataclass(frozen=True)
class Asking:
    """A teacher, and how its answers are read.

    Attributes:
        teacher: is asked.
        layout: of what it is to answer.
        output: what it answers.
    """

    teacher: Labeller
    layout: Layout
    output: Output

    def about(self, patch: Patch, scan: str) -> Answer:
        """The teacher's answer.

        Args:
            patch: as a client sends it.
            scan: names the patch in errors.

        Raises:
            SlimmingError: it has another shape than the spec says, is not finite, or the image does not fit fp16.
        """
        rois, statistics = patch.roi[None], patch.statistics[None]
        scores = self._scores(rois, statistics, scan)
        return Answer(self._image(rois, statistics, scan), scores, self._masks(scores))

    def mirrored(self, patch: Patch, masks: Array, axes: Sequence[int], scan: str) -> Mapping[str, list[list[int]]]:
        """By axis, the overlap of `masks` with the answer to the mirrored patch, mirrored back."""
        overlaps = {}
        for axis in axes:
            roi = np.ascontiguousarray(np.flip(patch.roi, axis + 1))
            scores = self._scores(roi[None], patch.statistics[None], scan)
            overlaps[str(axis)] = mirrors.overlap(masks, self._masks(np.flip(scores, axis + 1)))
        return overlaps

    def _masks(self, scores: Array) -> Array:
        return metrics.masks(scores, self.output)

    def _scores(self, rois: Array, statistics: Array, scan: str) -> Array:
        scores = self.teacher.scores(rois, statistics)
        if scores.shape[1:] != self.layout.target:
            raise SlimmingError(
                f"{scan}: expected the teacher's answer as {list(self.layout.target)} [class, *roi], "
                f"found {list(scores.shape[1:])}; output.labels or inferer.roi_size is wrong"
            )
        if not np.isfinite(scores).all():
            raise SlimmingError(
                f"{scan}: expected finite scores of the teacher, found NaN or infinity; build it with another engine "
                "or in fp32, or leave the scan out"
            )
        return np.asarray(np.clip(scores[0], -HIGHEST, HIGHEST))

    def _image(self, rois: Array, statistics: Array, scan: str) -> Array:
        image = self.teacher.image(rois, statistics)[0]
        with np.errstate(over="ignore"):
            stored = image.astype(self.layout.image_dtype)
        if not np.isfinite(stored).all():
            raise SlimmingError(
                f"{scan}: expected normalised values within ±{HIGHEST:g}, found {np.abs(image).max():g}; the scan's "
                "intensities are not what the model's rule is made for"
            )
        return np.asarray(stored)
