"""Measures how far a student agrees with its teacher on whole scans that it was not trained on.

It is agreement and no accuracy: where the teacher errs, a student that errs alike agrees with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from torch import nn

from voxtile.tiling.extract import tta_flips
from voxtile_build.arrays import Array, Feed, Runner
from voxtile_build.errors import AcceptanceError
from voxtile_build.evaluation.agreement import Agreement, LabelAgreement, ScanAgreement, agreement_of
from voxtile_build.evaluation.distances import hausdorff_95
from voxtile_build.evaluation.evaluate import rounded
from voxtile_build.evaluation.metrics import changed_voxels, dice, mask_names
from voxtile_build.evaluation.samples import Scan
from voxtile_build.evaluation.whole_scan import torch_runner
from voxtile_build.graph.wrapper import Wrapper
from voxtile_build.slimming.judging.whole_masks import Box, Told, WholeMasks, decide
from voxtile_build.spec.output import Output
from voxtile_build.spec.spec import Spec

MM3_IN_ML = 1000


def measure_agreement(
    spec: Spec,
    teacher: Runner,
    student: Runner,
    scans: Sequence[Callable[[], Scan]],
    *,
    block: bool = False,
    batch: int = 1,
    most_bytes: int | None = None,
    told: Told = lambda _: None,
) -> Agreement:
    """How far the masks of two networks agree.

    Args:
        spec: the teacher's, with the output that both give: logits or probabilities of every label.
        teacher: its scores of tiles, over its folds and mirrored passes.
        student: its scores of tiles.
        scans: each reads one scan that was held out; they are read one after the other.
        block: whether the one scan is a part of that which the student was trained on.
        batch: tiles in one run.
        most_bytes: for scores that are being stitched, see `decide`.
        told: is told which share is done.

    Raises:
        AcceptanceError: a score is NaN or infinite, so that nothing can be measured.
        BuildError: a scan cannot be read, or the teacher fails.
    """
    found = []
    for number, read in enumerate(scans):
        scan = read()
        masks = []
        for half, (who, run) in enumerate((("teacher", teacher), ("student", student))):

            def share(done: float, before: float = number + half / 2) -> None:
                told((before + done / 2) / len(scans))

            try:
                masks.append(decide(scan, spec, run, batch, most_bytes=most_bytes, told=share))
            except FloatingPointError as error:
                # By its number, because its name may be that of a patient.
                raise AcceptanceError(
                    f"{spec.name}: held-out scan {number + 1} of {len(scans)}: expected finite scores of the {who}, "
                    f"found {error}; nothing can be said of the student"
                ) from None
        found.append(_compared(scan, spec.output, *masks))
    return agreement_of(found, block=block)


def student_runner(network: nn.Module, student: Spec, scoring: Spec) -> Runner:
    """The student in fp32 PyTorch as it will be served, mirrored if it mirrors, with the output that the teacher gives.

    Args:
        network: the student, in evaluation mode.
        student: its spec.
        scoring: the teacher's spec, with the output that both give.
    """
    once = torch_runner(Wrapper(network, student.model_copy(update={"output": scoring.output})).eval())
    flips = tta_flips(student.tiling.mirror_axes)

    def run(feed: Feed) -> Array:
        passes = (_flipped(once({**feed, "roi": _flipped(feed["roi"], axes)}), axes) for axes in flips)
        mean: Array = np.mean([one.astype(np.float32, copy=False) for one in passes], axis=0)
        return mean

    return once if len(flips) == 1 else run


def _flipped(values: Array, axes: Sequence[int]) -> Array:
    """`values` [batch, channel, *spatial] flipped along the spatial `axes`."""
    return np.flip(values, tuple(2 + axis for axis in axes))


def _compared(scan: Scan, output: Output, teacher: WholeMasks, student: WholeMasks) -> ScanAgreement:
    """The two masks of each label of one scan."""
    boxes = zip(teacher.boxes(), student.boxes(), strict=True)
    labels = {
        name: _label(teacher, student, index, _around(*both), scan.spacing)
        for index, (name, both) in enumerate(zip(mask_names(output), boxes, strict=True))
    }
    changed = teacher.changed_voxels(student)
    return ScanAgreement(
        sha256=scan.sha256,
        shape=teacher.shape,
        spacing=scan.spacing,
        changed_voxels=changed,
        changed_fraction=changed / math.prod(teacher.shape),
        labels=labels,
    )


def _label(
    teacher: WholeMasks, student: WholeMasks, index: int, box: Box | None, spacing: Sequence[float]
) -> LabelAgreement:
    """One label, whose voxels all lie in `box`; None where neither has any."""
    if box is None:
        return LabelAgreement(
            dice=None,
            hausdorff_95_mm=None,
            voxels=0,
            student_voxels=0,
            changed_voxels=0,
            volume_difference_ml=0.0,
            volume_difference_percent=None,
        )
    wanted, found = teacher.mask(index, box), student.mask(index, box)
    distance = hausdorff_95(wanted, found, spacing)
    before, after = int(wanted.sum()), int(found.sum())
    return LabelAgreement(
        dice=dice(wanted, found),
        hausdorff_95_mm=None if distance is None else rounded(distance),
        voxels=before,
        student_voxels=after,
        changed_voxels=changed_voxels(wanted[None], found[None]),
        volume_difference_ml=(after - before) * math.prod(spacing) / MM3_IN_ML,
        volume_difference_percent=100 * (after - before) / before if before else None,
    )


def _around(one: Box | None, other: Box | None) -> Box | None:
    """The smallest box around two."""
    if one is None or other is None:
        return one or other
    return tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(one, other, strict=True))
