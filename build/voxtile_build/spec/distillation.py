"""The table [distillation]: of which teacher the network is a student, and how far the two must agree."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from voxtile_build.spec.name import checked_name
from voxtile_build.spec.table import AnyPath, Sha256, Share, Table

MIN_DICE = 0.95
"""Default of distillation.min_dice. Students with a quarter of the parameters reached 0.95 to 0.98; the 0.995 that an
engine must reach is beyond them."""


class Distillation(Table):
    """The teacher of a network that `voxtile-build distil` made, and the report of how far the two agree."""

    teacher: Annotated[str, AfterValidator(checked_name)] = Field(description="name of the teacher")
    teacher_sha256: Sha256 = Field(description="SHA-256 of the teacher's weights, in hexadecimal")
    report: AnyPath = Field(description="report of the distillation, relative to the spec: NAME.distillation.json")
    report_sha256: Sha256 = Field(description="SHA-256 of that report, in hexadecimal; another file is refused")
    min_dice: Share = Field(
        default=MIN_DICE,
        description="smallest Dice between student and teacher of any label of any held-out scan; below it, nothing is "
        "published",
    )
    allow_unseen_labels: bool = Field(
        default=False,
        description="publish the student although the held-out scans hardly show some labels, so that nobody knows how "
        "far it agrees with its teacher there",
    )
