"""Reports of distillations that never took place: a student of a teacher, with the agreement that a test asks for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from voxtile_build.certificate.distillation import (
    Cost,
    DistillationReport,
    Scans,
    Student,
    Teacher,
    judged_as,
)
from voxtile_build.evaluation.agreement import Agreement, LabelAgreement, ScanAgreement, agreement_of
from voxtile_build.hashing import bytes_sha256
from voxtile_build.spec.distillation import Distillation
from voxtile_build.spec.spec import Spec

TEACHER, TEACHER_SHA256 = "large-one", "7e" * 32
VOXELS = 20_000
"""Of a label, where a test says nothing else."""


def label(dice: float | None, voxels: int = VOXELS, changed: int | None = None) -> LabelAgreement:
    """The agreement on one label; of a lower Dice, as many voxels change as a shifted mask of the same size has."""
    moved = round(2 * voxels * (1 - (1 if dice is None else dice))) if changed is None else changed
    return LabelAgreement(
        dice=dice,
        hausdorff_95_mm=1.5 if moved else 0.0,
        voxels=voxels,
        student_voxels=voxels,
        changed_voxels=moved,
        volume_difference_ml=0.0,
        volume_difference_percent=0.0 if voxels else None,
    )


def scan(labels: Mapping[str, LabelAgreement], number: int = 0) -> ScanAgreement:
    """The agreement on one scan."""
    return ScanAgreement(
        sha256=f"{number:02x}" * 32,
        shape=(40, 50, 60),
        spacing=(1.0, 1.5, 2.0),
        changed_voxels=(changed := max(one.changed_voxels for one in labels.values())),
        changed_fraction=changed / (40 * 50 * 60),
        labels=dict(labels),
    )


def agreement(spec: Spec, *dice: float, block: bool = False) -> Agreement:
    """An agreement on a scan for each of `dice`, which is that of the last label; all others agree better."""
    names = [one.name for one in spec.output.labels]
    scans = [
        scan({name: label(one if name == names[-1] else (1 + one) / 2) for name in names}, number)
        for number, one in enumerate(dice)
    ]
    return agreement_of(scans, block=block)


def report_of(spec: Spec, found: Agreement, **changes: Any) -> DistillationReport:
    """The report of a distillation that made the weights of `spec`."""
    weights = spec.weights.sha256 if spec.weights else spec.network.sha256
    fields: dict[str, Any] = {
        "student": Student(
            name=spec.name,
            weights_sha256=str(weights),
            judged_as=judged_as(spec),
            cost=Cost(parameters=100, gflop=0.5, seconds={"PyTorch fp32": 0.01}),
        ),
        "teacher": Teacher(
            name=TEACHER, weights_sha256=TEACHER_SHA256, cost=Cost(parameters=4000, gflop=20.0, seconds={"openvino": 1})
        ),
        "scans": Scans(
            trained_on=("aa" * 32, "bb" * 32),
            held_out=tuple(f"{number:02x}" * 32 for number in range(len(found.scans))),
        ),
        "agreement": found,
    }
    return DistillationReport(**{**fields, **changes})


def as_student(spec: Spec, folder: Path, report: DistillationReport, **changes: Any) -> Spec:
    """`spec` with the table [distillation], whose report is written into `folder`."""
    file = folder / f"{spec.name}.distillation.json"
    file.write_text(report.text(), encoding="utf-8")
    fields = {
        "teacher": TEACHER,
        "teacher_sha256": TEACHER_SHA256,
        "report": file,
        "report_sha256": bytes_sha256(file.read_bytes()),
    }
    return spec.model_copy(update={"distillation": Distillation.model_validate({**fields, **changes})})
