"""The transforms that a chain of pre-processing may hold, with MONAI's names, arguments and defaults."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from voxtile.transforms.base import (
    AxisCodes,
    Finite,
    PerAxisPositive,
    PerAxisSize,
    PerAxisVoxels,
    Percent,
    PerChannel,
    PerChannelPositive,
    Rule,
    Transform,
    Voxels,
)

PadMode = Literal["constant", "edge", "replicate", "reflect", "symmetric", "wrap", "circular"]
PadMethod = Literal["symmetric", "end"]


class Orientation(Transform):
    """Exchanges and flips axes; the mask is turned back."""

    transform: Literal["Orientation"] = Field(default="Orientation", description="name of the transform")
    axcodes: AxisCodes = Field(description="axis codes that the network expects, such as RAS")


class Spacing(Transform):
    """Resamples linearly to another voxel size; scores are resampled back."""

    transform: Literal["Spacing"] = Field(default="Spacing", description="name of the transform")
    pixdim: PerAxisPositive = Field(
        description="voxel size in mm: one number for all axes, or one for each axis as they are at this step"
    )
    mode: Literal["bilinear"] = Field(default="bilinear", description="how values between voxels are found: bilinear")
    padding_mode: Literal["border"] = Field(
        default="border", description="values beyond the outermost voxels: border, those of the voxels"
    )
    diagonal: Literal[False] = Field(default=False, description="whether axes are straightened: false only")
    align_corners: Literal[False] = Field(default=False, description="MONAI's argument: false only")
    scale_extent: Literal[False] = Field(default=False, description="MONAI's argument: false only")
    recompute_affine: Literal[False] = Field(default=False, description="MONAI's argument: false only")


class ScaleIntensityRange(Transform):
    """Maps a_min..a_max linearly to b_min..b_max."""

    transform: Literal["ScaleIntensityRange"] = Field(
        default="ScaleIntensityRange", description="name of the transform"
    )
    a_min: Finite = Field(description="value that becomes b_min")
    a_max: Finite = Field(description="value that becomes b_max")
    b_min: Finite | None = Field(default=None, description="what a_min becomes; left out with b_max: 0 to 1, unclipped")
    b_max: Finite | None = Field(default=None, description="what a_max becomes")
    clip: bool = Field(default=False, description="whether results are clipped to b_min..b_max")

    @model_validator(mode="after")
    def _consistent(self) -> ScaleIntensityRange:
        if self.a_min == self.a_max:
            raise ValueError(f"expected a_min and a_max to differ, found {self.a_min:g} for both")
        _check_bounds(self.b_min, self.b_max, self.clip)
        return self


class NormalizeIntensity(Transform):
    """(x - subtrahend) / divisor; what is left out is the mean or the standard deviation of the scan."""

    transform: Literal["NormalizeIntensity"] = Field(default="NormalizeIntensity", description="name of the transform")
    subtrahend: PerChannel | None = Field(
        default=None, description="what is subtracted: one number, or one for each channel; left out: the scan's mean"
    )
    divisor: PerChannelPositive | None = Field(
        default=None,
        description="what is divided by: one number, or one for each channel; left out: the scan's standard deviation",
    )
    nonzero: bool = Field(default=False, description="whether voxels of value 0 stay 0 and do not count")
    channel_wise: bool = Field(default=False, description="whether each channel has its own mean and deviation")


class ScaleIntensity(Transform):
    """Maps the scan's lowest value to minv and its highest to maxv; with factor, multiplies by 1 + factor instead."""

    transform: Literal["ScaleIntensity"] = Field(default="ScaleIntensity", description="name of the transform")
    minv: Finite | None = Field(default=0.0, description="what the scan's lowest value becomes")
    maxv: Finite | None = Field(default=1.0, description="what the scan's highest value becomes")
    factor: Finite | None = Field(
        default=None, description="in place of minv and maxv: values are multiplied by 1 + factor"
    )
    channel_wise: bool = Field(default=False, description="whether each channel has its own lowest and highest value")

    @model_validator(mode="before")
    @classmethod
    def _factor_alone(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("factor") is None:
            return data
        both = [key for key in ("minv", "maxv") if data.get(key) is not None]
        if both:
            raise ValueError(f"factor goes without minv and maxv, found also {' and '.join(both)}")
        return {**data, "minv": None, "maxv": None}

    @model_validator(mode="after")
    def _both(self) -> ScaleIntensity:
        if (self.minv is None) != (self.maxv is None):
            raise ValueError("minv and maxv go together")
        return self


class ScaleIntensityRangePercentiles(Transform):
    """Maps two percentiles of the scan to b_min and b_max."""

    transform: Literal["ScaleIntensityRangePercentiles"] = Field(
        default="ScaleIntensityRangePercentiles", description="name of the transform"
    )
    lower: Percent = Field(description="lower percentile, 0..100")
    upper: Percent = Field(description="upper percentile, 0..100")
    b_min: Finite | None = Field(default=None, description="what the lower percentile becomes")
    b_max: Finite | None = Field(default=None, description="what the upper percentile becomes")
    clip: bool = Field(default=False, description="whether results are clipped to b_min..b_max")
    relative: bool = Field(
        default=False, description="whether percentiles become the same shares of b_min..b_max instead of its ends"
    )
    channel_wise: bool = Field(default=False, description="whether each channel has its own percentiles")

    @model_validator(mode="after")
    def _consistent(self) -> ScaleIntensityRangePercentiles:
        if not self.upper > self.lower:
            raise ValueError(f"expected upper above lower, found lower {self.lower:g} and upper {self.upper:g}")
        _check_bounds(self.b_min, self.b_max, self.clip)
        if self.relative and self.b_min is None:
            raise ValueError("relative needs b_min and b_max")
        return self


class ClipIntensityPercentiles(Transform):
    """Clips values to two percentiles of the scan."""

    transform: Literal["ClipIntensityPercentiles"] = Field(
        default="ClipIntensityPercentiles", description="name of the transform"
    )
    lower: Percent | None = Field(default=None, description="lower percentile, 0..100; left out: not clipped below")
    upper: Percent | None = Field(default=None, description="upper percentile, 0..100; left out: not clipped above")
    sharpness_factor: None = Field(default=None, description="soft clipping has no counterpart; leave it out")
    channel_wise: bool = Field(default=False, description="whether each channel has its own percentiles")

    @model_validator(mode="after")
    def _consistent(self) -> ClipIntensityPercentiles:
        if self.lower is None and self.upper is None:
            raise ValueError("expected lower, upper or both, found neither")
        if self.lower is not None and self.upper is not None and self.upper < self.lower:
            raise ValueError(f"expected upper above lower, found lower {self.lower:g} and upper {self.upper:g}")
        return self


class ThresholdIntensity(Transform):
    """Replaces values on one side of a threshold by cval."""

    transform: Literal["ThresholdIntensity"] = Field(default="ThresholdIntensity", description="name of the transform")
    threshold: Finite = Field(description="values on the other side of this are replaced")
    above: bool = Field(default=True, description="whether values above the threshold are kept, or those below it")
    cval: Finite = Field(default=0.0, description="what replaces a value")


class MaskIntensity(Transform):
    """Sets values that a rule of the image itself does not select to 0."""

    transform: Literal["MaskIntensity"] = Field(default="MaskIntensity", description="name of the transform")
    select_fn: Rule = Field(default="x > 0", description="which values are kept, as text: x > NUMBER")


class CropForeground(Transform):
    """Crops to the box around all selected voxels; outside it, scores are 0."""

    transform: Literal["CropForeground"] = Field(default="CropForeground", description="name of the transform")
    select_fn: Rule = Field(default="x > 0", description="which voxels are foreground, as text: x > NUMBER")
    channel_indices: Annotated[tuple[Voxels, ...], Field(min_length=1)] | None = Field(
        default=None, description="channels that are looked at; left out: all, and a voxel of any of them counts"
    )
    margin: PerAxisVoxels = Field(default=0, description="voxels that are added around the box")
    allow_smaller: bool = Field(
        default=False, description="whether the box ends at the scan's edge; else what lies beyond is padded"
    )
    k_divisible: PerAxisSize = Field(default=1, description="number that each size of the box is made a multiple of")
    mode: PadMode = Field(default="constant", description="how the box is padded beyond the scan's edge")
    value: Finite = Field(default=0.0, description="what is padded with, for mode constant")


class SpatialPad(Transform):
    """Pads to a size; the scores of what was padded are dropped."""

    transform: Literal["SpatialPad"] = Field(default="SpatialPad", description="name of the transform")
    spatial_size: PerAxisSize = Field(description="smallest size along each axis; -1: any")
    method: PadMethod = Field(default="symmetric", description="padded on both sides, or at the end")
    mode: PadMode = Field(default="constant", description="what is padded with")
    value: Finite = Field(default=0.0, description="what is padded with, for mode constant")


class DivisiblePad(Transform):
    """Pads each size to a multiple of k; the scores of what was padded are dropped."""

    transform: Literal["DivisiblePad"] = Field(default="DivisiblePad", description="name of the transform")
    k: PerAxisSize = Field(description="number that each size is made a multiple of; 0 or -1: any size")
    method: PadMethod = Field(default="symmetric", description="padded on both sides, or at the end")
    mode: PadMode = Field(default="constant", description="what is padded with")
    value: Finite = Field(default=0.0, description="what is padded with, for mode constant")


class CenterSpatialCrop(Transform):
    """Crops to a size around the middle; outside it, scores are 0."""

    transform: Literal["CenterSpatialCrop"] = Field(default="CenterSpatialCrop", description="name of the transform")
    roi_size: PerAxisSize = Field(description="largest size along each axis; -1: any")


class ResizeWithPadOrCrop(Transform):
    """Crops around the middle where a size is larger, and pads where it is smaller."""

    transform: Literal["ResizeWithPadOrCrop"] = Field(
        default="ResizeWithPadOrCrop", description="name of the transform"
    )
    spatial_size: PerAxisSize = Field(description="size along each axis; -1: as it is")
    method: PadMethod = Field(default="symmetric", description="padded on both sides, or at the end")
    mode: PadMode = Field(default="constant", description="what is padded with")
    value: Finite = Field(default=0.0, description="what is padded with, for mode constant")


Preprocessing = Annotated[
    Orientation
    | Spacing
    | ScaleIntensityRange
    | NormalizeIntensity
    | ScaleIntensity
    | ScaleIntensityRangePercentiles
    | ClipIntensityPercentiles
    | ThresholdIntensity
    | MaskIntensity
    | CropForeground
    | SpatialPad
    | DivisiblePad
    | CenterSpatialCrop
    | ResizeWithPadOrCrop,
    Field(discriminator="transform"),
]
"""A step of a chain of pre-processing."""

MOVING = (
    Orientation,
    Spacing,
    CropForeground,
    SpatialPad,
    DivisiblePad,
    CenterSpatialCrop,
    ResizeWithPadOrCrop,
)
"""Transforms after which a voxel lies at another place."""


def is_pointwise(step: Transform) -> bool:
    """Whether each value follows from the value before it alone: no voxel moves, and no statistics are taken."""
    if isinstance(step, NormalizeIntensity):
        return step.subtrahend is not None and step.divisor is not None
    if isinstance(step, ScaleIntensity):
        return step.minv is None
    return isinstance(step, (ScaleIntensityRange, ThresholdIntensity, MaskIntensity))


def _check_bounds(b_min: float | None, b_max: float | None, clip: bool) -> None:
    if (b_min is None) != (b_max is None):
        raise ValueError("b_min and b_max go together")
    if clip and b_min is None:
        raise ValueError("clip needs b_min and b_max")
    if clip and b_min is not None and b_max is not None and not b_max > b_min:
        raise ValueError(f"with clip, expected b_max above b_min, found b_min {b_min:g} and b_max {b_max:g}")
