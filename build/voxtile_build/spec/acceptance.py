"""The table [acceptance]: what an engine must reach against fp32 PyTorch to be published."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from voxtile_build.spec.table import AnyPath, PositiveFloat, Share, Table, as_scans


class Acceptance(Table):
    """Limits of an engine's certificate, and the scans that it is measured on."""

    max_abs_error: PositiveFloat | None = Field(
        default=None, description="largest error of a probability in any voxel; left out: by the output's type"
    )
    max_logit_error: PositiveFloat | None = Field(
        default=None, description="largest error of a logit as a share of the range of all; left out: 0.001 for fp32"
    )
    min_dice: Share = Field(
        default=0.995,  # the default of a reduced precision: no label's Dice falls by more than 0.005
        description="smallest Dice of any label between engine and fp32 PyTorch",
    )
    max_changed: Share = Field(
        default=1e-3,  # one voxel in a thousand is far below the disagreement of two readers
        description="largest share of voxels whose label changes",
    )
    scans: tuple[tuple[AnyPath, ...], ...] = Field(
        default=(),
        description="scans for the whole-scan certificate, relative to the spec (a list of files a scan where there "
        "are several channels); left out: a generated phantom",
    )

    @field_validator("scans", mode="before")
    @classmethod
    def _one_file_is_a_scan(cls, value: Any) -> Any:
        return as_scans(value)
