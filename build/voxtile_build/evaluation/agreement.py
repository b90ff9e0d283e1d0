"""How far the masks of two networks agree, label by label: one scan, and all scans together.

The figures alone, and how they are summed up. Knows neither networks nor arrays.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from voxtile_build.evaluation.summary import SEEN_VOXELS, counts
from voxtile_build.spec.table import Sha256, Share

Natural = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0)]
Name = Annotated[str, Field(min_length=1)]


class Part(BaseModel):
    """A part of a report: finite numbers, and no keys but its own."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LabelAgreement(Part):
    """How far the two masks of one label agree on one scan.

    Attributes:
        dice: None where both masks are empty.
        hausdorff_95_mm: the 95th percentile of the distances between the surfaces; None where one mask is empty.
        voxels: of the teacher's mask.
        student_voxels: of the student's mask.
        changed_voxels: voxels that only one of the masks has.
        volume_difference_ml: of the student's mask, less the teacher's.
        volume_difference_percent: the same as a share of the teacher's volume; None where that is 0.
    """

    dice: Share | None
    hausdorff_95_mm: Amount | None
    voxels: Natural
    student_voxels: Natural
    changed_voxels: Natural
    volume_difference_ml: float
    volume_difference_percent: float | None

    @property
    def counts(self) -> bool:
        """Whether the Dice decides anything: in a label of few voxels, a few changed ones do not."""
        return self.dice is not None and counts(self.voxels, self.changed_voxels)


class ScanAgreement(Part):
    """How far the two agree on one scan that was held out, which no name tells from others.

    Attributes:
        sha256: of the scan as it was prepared.
        shape: voxels along each axis.
        spacing: mm of a voxel along each axis.
        changed_voxels: voxels whose label differs, or any of whose regions does.
        changed_fraction: the same as a share of all voxels.
        labels: by the label's name.
    """

    sha256: Sha256
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    changed_voxels: Natural
    changed_fraction: Share
    labels: Annotated[dict[Name, LabelAgreement], Field(min_length=1)]


class LabelSummary(Part):
    """How far the two agree on one label: the mean over the scans that show it, and the worst one.

    Attributes:
        scans: how many scans show the label, in one of the masks at least.
        voxels: of the teacher's masks, in all scans together.
        dice_mean: None where no scan shows the label.
        dice_min: the lowest Dice. A scan in which a few voxels of a small label change counts only if no other does.
        hausdorff_95_mm_mean: over the scans in which both masks have the label.
        hausdorff_95_mm_max: the largest of them.
        volume_difference_ml_mean: the mean of the absolute differences.
        volume_difference_percent_max: the largest absolute one.
    """

    scans: Natural
    voxels: Natural
    dice_mean: Share | None
    dice_min: Share | None
    hausdorff_95_mm_mean: Amount | None
    hausdorff_95_mm_max: Amount | None
    volume_difference_ml_mean: Amount
    volume_difference_percent_max: Amount | None


class Agreement(Part):
    """How far student and teacher agree on scans that the student was not trained on. It is no accuracy.

    Attributes:
        block: whether the one scan was only a part that was held out; the rest of it was trained on.
        scans: one by one.
        labels: over all scans, by the label's name.
        dice_min: the lowest of all labels and scans; None where the scans show nothing that could be compared.
        changed_fraction: the largest share of voxels of a scan whose label differs.
        unseen_labels: labels of which the teacher's masks hardly have any voxels, and how many: nothing is known there.
    """

    block: bool = False
    scans: Annotated[tuple[ScanAgreement, ...], Field(min_length=1)]
    labels: dict[Name, LabelSummary]
    dice_min: Share | None
    changed_fraction: Share
    unseen_labels: dict[Name, Natural]

    @model_validator(mode="after")
    def _summed_up_right(self) -> Agreement:
        if len({tuple(scan.labels) for scan in self.scans}) > 1:
            raise ValueError("expected the same labels of every scan")
        if self.block and len(self.scans) > 1:
            raise ValueError(f"expected one scan of which a part was held out, found {len(self.scans)}")
        wanted = summed_up(self.scans)
        found = {name: getattr(self, name) for name in wanted}
        if found != wanted:
            wrong = [name for name in wanted if found[name] != wanted[name]]
            raise ValueError(f"{', '.join(wrong)}: expected what follows from the scans, found something else")
        return self


def agreement_of(scans: Sequence[ScanAgreement], *, block: bool = False) -> Agreement:
    """The agreement on all of `scans`."""
    return Agreement(block=block, scans=tuple(scans), **summed_up(scans))


def summed_up(scans: Sequence[ScanAgreement]) -> dict[str, Any]:
    """The fields of an `Agreement` that follow from its scans."""
    labels = {name: _label([scan.labels[name] for scan in scans]) for name in scans[0].labels}
    return {
        "labels": labels,
        "dice_min": min((one.dice_min for one in labels.values() if one.dice_min is not None), default=None),
        "changed_fraction": max(scan.changed_fraction for scan in scans),
        "unseen_labels": {name: one.voxels for name, one in labels.items() if one.voxels < SEEN_VOXELS},
    }


def _label(found: Sequence[LabelAgreement]) -> LabelSummary:
    dice = [one.dice for one in found if one.dice is not None]
    decisive = [one.dice for one in found if one.counts and one.dice is not None]
    distances = [one.hausdorff_95_mm for one in found if one.hausdorff_95_mm is not None and one.dice is not None]
    shares = [abs(one.volume_difference_percent) for one in found if one.volume_difference_percent is not None]
    return LabelSummary(
        scans=len(dice),
        voxels=sum(one.voxels for one in found),
        dice_mean=_mean(dice),
        dice_min=min(decisive or dice, default=None),
        hausdorff_95_mm_mean=_mean(distances),
        hausdorff_95_mm_max=max(distances, default=None),
        volume_difference_ml_mean=_mean([abs(one.volume_difference_ml) for one in found]) or 0.0,
        volume_difference_percent_max=max(shares, default=None),
    )


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None
