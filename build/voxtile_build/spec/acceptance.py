"""The table [acceptance]: what an engine must reach against fp32 PyTorch to be published."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator

from voxtile_build.spec.table import AnyPath, PositiveFloat, Share, Table, as_scans

COVERING = 0.1
"""Where the error of every probability is limited to at most this, a label cannot be lost unseen."""


class Acceptance(Table):
    """Limits of an engine's certificate, and the scans that it is measured on."""

    max_abs_error: PositiveFloat | None = Field(
        default=None,
        description="largest error of a probability in any voxel; left out: 0.05 for fp32, none for reduced precision",
    )
    max_logit_error: PositiveFloat | None = Field(
        default=None,
        description="largest error of a logit as a share of the range of all; left out: 0.01 for fp32, none for "
        "reduced precision",
    )
    max_score_error: Annotated[PositiveFloat, Field(lt=1)] | None = Field(  # constant scores are off by 1 or more
        default=None,
        description="largest root mean square error of the scores, as a share of their own spread, below 1; left out: "
        "0.005 for fp32, 0.5 for reduced precision",
    )
    min_dice: Share = Field(
        default=0.995,  # the default of a reduced precision: no label's Dice falls by more than 0.005
        description="smallest Dice of any label between engine and fp32 PyTorch",
    )
    max_changed: Share = Field(
        default=1e-3,  # one voxel in a thousand is far below the disagreement of two readers
        description="largest share of voxels whose label changes",
    )
    allow_unseen_labels: bool = Field(
        default=False,
        description="publish an engine without a limit on single voxels although the scans hardly show some labels",
    )
    scans: tuple[tuple[AnyPath, ...], ...] = Field(
        default=(),
        description="scans for the whole-scan certificate, relative to the spec (a list of files a scan where there "
        "are several channels); left out: a generated phantom",
    )

    @property
    def takes_unseen_labels(self) -> bool:
        """Whether an engine of reduced precision may be published although the scans do not show every label."""
        return self.allow_unseen_labels or (self.max_abs_error is not None and self.max_abs_error <= COVERING)

    @field_validator("scans", mode="before")
    @classmethod
    def _one_file_is_a_scan(cls, value: Any) -> Any:
        return as_scans(value)
