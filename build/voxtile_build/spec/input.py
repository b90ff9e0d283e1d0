"""The table [input]: channels, grid and intensities of the scans that the network takes.

The intensity rules are those of the card, so that the client and the graph read the same numbers.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from voxtile import card
from voxtile_build.spec.table import PositiveFloat, Table

PADDING = {"fp32": -3.4028234663852886e38, "fp16": -65504.0, "int16": -32768.0}
"""The lowest value of each input type: it marks a voxel outside the scan."""


class IntensityNone(card.IntensityNone, Table):
    """`rule = "none"`."""


class IntensityRange(card.IntensityRange, Table):
    """`rule = "range"`."""


class IntensityFixed(card.IntensityFixed, Table):
    """`rule = "fixed"`."""


class IntensityZscore(card.IntensityZscore, Table):
    """`rule = "zscore"`; `keep_zero` concerns the graph alone and is not in the card."""

    keep_zero: bool = Field(
        default=False, description="whether voxels of value 0 stay 0, as with MONAI's NormalizeIntensity(nonzero=True)"
    )


class IntensityPercentile(card.IntensityPercentile, Table):
    """`rule = "percentile"`."""


Intensity = Annotated[
    IntensityNone | IntensityRange | IntensityFixed | IntensityZscore | IntensityPercentile,
    Field(discriminator="rule"),
]


class Input(Table):
    """What the network takes."""

    channels: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        description="names of the input channels, in the network's order"
    )
    dtype: card.InputDtype = Field(
        default="fp32", description="data type in which a ROI is sent to the server: fp32, fp16 or int16"
    )
    orientation: card.Orientation | None = Field(
        default=None, description="axis codes that the network expects, e.g. RAS; left out: as stored"
    )
    spacing: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = Field(
        default=None, description="voxel size in mm that the network expects; left out: as stored"
    )
    intensity: Intensity = Field(default=IntensityNone(), description="how values are normalised")

    @model_validator(mode="after")
    def _a_number_a_channel(self) -> Input:
        if isinstance(self.intensity, IntensityFixed):
            for key in ("mean", "std", "lower", "upper"):
                numbers = getattr(self.intensity, key)
                if numbers is not None and len(numbers) != len(self.channels):
                    raise ValueError(
                        f"expected intensity.{key} with one number for each of {len(self.channels)} channels, "
                        f"found {len(numbers)}"
                    )
        return self
