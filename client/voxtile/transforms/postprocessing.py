"""The transforms that a chain of post-processing may hold, with MONAI's names, arguments and defaults.

Numbers of labels are those of the network's output channels, from 0, until MapLabelValue changes them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from voxtile.transforms.base import Finite, Numbers, Transform

Connectivity = Annotated[int, Field(ge=1, le=3)]
LabelValue = Annotated[int, Field(ge=0, le=65535)]


class Activations(Transform):
    """Softmax over the channels, or a sigmoid of each."""

    transform: Literal["Activations"] = Field(default="Activations", description="name of the transform")
    softmax: bool = Field(default=False, description="whether scores go through softmax")
    sigmoid: bool = Field(default=False, description="whether each score goes through a sigmoid")

    @model_validator(mode="after")
    def _one(self) -> Activations:
        if self.softmax == self.sigmoid:
            raise ValueError(
                f"expected softmax = true or sigmoid = true, found {'both' if self.softmax else 'neither'}"
            )
        return self


class Invert(Transform):
    """Brings what there is at this step, scores or labels, back to the scan's own grid."""

    transform: Literal["Invert"] = Field(default="Invert", description="name of the transform")
    nearest_interp: bool = Field(
        default=True, description="whether each voxel takes the nearest one; false: scores are blended linearly"
    )


class AsDiscrete(Transform):
    """Decides labels: the class of the largest score, or each channel by a threshold."""

    transform: Literal["AsDiscrete"] = Field(default="AsDiscrete", description="name of the transform")
    argmax: bool = Field(default=False, description="whether the class of the largest score is taken")
    threshold: Finite | None = Field(
        default=None, description="score from which a voxel belongs to a channel's region; for regions"
    )
    to_onehot: None = Field(default=None, description="labels stay one number a voxel; leave it out")
    rounding: None = Field(default=None, description="labels are whole numbers already; leave it out")

    @model_validator(mode="after")
    def _one(self) -> AsDiscrete:
        if self.argmax == (self.threshold is not None):
            raise ValueError(f"expected argmax = true or a threshold, found {'both' if self.argmax else 'neither'}")
        return self


class KeepLargestConnectedComponent(Transform):
    """Keeps the largest connected components; all others become background."""

    transform: Literal["KeepLargestConnectedComponent"] = Field(
        default="KeepLargestConnectedComponent", description="name of the transform"
    )
    applied_labels: Numbers | None = Field(
        default=None, description="labels that are looked at; for regions, channels; left out: all that occur, but 0"
    )
    is_onehot: bool | None = Field(
        default=None, description="whether labels lie in channels; left out: true for several regions"
    )
    independent: bool = Field(
        default=True, description="whether each label is looked at alone, or the union of all applied labels"
    )
    connectivity: Connectivity | None = Field(
        default=None, description="steps along different axes by which neighbours may lie apart, 1 to 3; left out: 3"
    )
    num_components: Annotated[int, Field(gt=0)] = Field(default=1, description="how many components are kept")


class FillHoles(Transform):
    """Fills holes that one label encloses."""

    transform: Literal["FillHoles"] = Field(default="FillHoles", description="name of the transform")
    applied_labels: Numbers | None = Field(
        default=None, description="labels whose holes are filled; for regions, channels; left out: all but 0"
    )
    connectivity: Connectivity | None = Field(
        default=None, description="steps along different axes by which neighbours may lie apart, 1 to 3; left out: 3"
    )


class RemoveSmallObjects(Transform):
    """Removes connected components that are smaller than min_size."""

    transform: Literal["RemoveSmallObjects"] = Field(default="RemoveSmallObjects", description="name of the transform")
    min_size: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        default=64, description="smallest size that is kept, in voxels; with by_measure, in cubic millimetres"
    )
    connectivity: Connectivity = Field(
        default=1, description="steps along different axes by which neighbours may lie apart, 1 to 3"
    )
    independent_channels: bool = Field(
        default=True, description="whether labels are looked at one by one, or all together"
    )
    by_measure: bool = Field(default=False, description="whether min_size is in cubic millimetres instead of voxels")


class LabelFilter(Transform):
    """Keeps some labels; all others become background."""

    transform: Literal["LabelFilter"] = Field(default="LabelFilter", description="name of the transform")
    applied_labels: Numbers = Field(description="labels that are kept")


class MapLabelValue(Transform):
    """Gives labels other values in the mask."""

    transform: Literal["MapLabelValue"] = Field(default="MapLabelValue", description="name of the transform")
    orig_labels: Annotated[tuple[LabelValue, ...], Field(min_length=1)] = Field(description="labels that are changed")
    target_labels: Annotated[tuple[LabelValue, ...], Field(min_length=1)] = Field(
        description="what each of them becomes"
    )

    @model_validator(mode="after")
    def _pairs(self) -> MapLabelValue:
        if len(self.orig_labels) != len(self.target_labels):
            raise ValueError(
                f"expected one of target_labels for each of orig_labels, found {len(self.target_labels)} for "
                f"{len(self.orig_labels)}"
            )
        if len(set(self.orig_labels)) < len(self.orig_labels):
            raise ValueError(f"expected every one of orig_labels once, found {list(self.orig_labels)}")
        return self


Postprocessing = Annotated[
    Activations
    | Invert
    | AsDiscrete
    | KeepLargestConnectedComponent
    | FillHoles
    | RemoveSmallObjects
    | LabelFilter
    | MapLabelValue,
    Field(discriminator="transform"),
]
"""A step of a chain of post-processing."""

Cleaning = Annotated[
    KeepLargestConnectedComponent | FillHoles | RemoveSmallObjects | LabelFilter, Field(discriminator="transform")
]
"""A step that changes decided labels."""
