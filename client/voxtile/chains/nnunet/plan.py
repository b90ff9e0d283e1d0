"""What an nnU-Net plan says about one configuration, and what a card says about a model beyond it, checked key by key.

Knows nothing of scans. Keys that are not used here are ignored: nnU-Net writes many more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictInt, ValidationError, model_validator

from voxtile.chains.nnunet.normalising import check_scheme
from voxtile.chains.nnunet.resampling_rules import ResamplingRule
from voxtile.errors import ModelError

Spacing = tuple[float, float, float]
Plan = TypeVar("Plan", bound="NnunetPlan")


def _checked_order(axes: tuple[int, int, int]) -> tuple[int, int, int]:
    if sorted(axes) != [0, 1, 2]:
        raise ValueError("expected an order of the axes 0, 1, 2")
    return axes


AxisOrder = Annotated[tuple[int, int, int], AfterValidator(_checked_order)]
PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
TwoOrThree = Field(min_length=2, max_length=3)


class NnunetPlan(BaseModel):
    """One configuration of nnU-Net's plans.json, merged into its top level; nnU-Net's own keys.

    Attributes:
        transpose_forward: the plan's order of a scan's axes (z, y, x).
        transpose_backward: the way back.
        spacing: target spacing in millimetres, in the plan's axes; a 2D plan has two.
        patch_size: the network's ROI, in the plan's axes.
        normalization_schemes: for each channel, the name of nnU-Net's scheme.
        use_mask_for_norm: for each channel, whether only the non-zero region is normalised.
        foreground_intensity_properties_per_channel: statistics of the training set, by the channel's number.
        foreground_labels: of a cascade's second stage, the labels that become channels.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    transpose_forward: AxisOrder
    transpose_backward: AxisOrder
    spacing: Annotated[tuple[PositiveFloat, ...], TwoOrThree]
    patch_size: Annotated[tuple[PositiveInt, ...], TwoOrThree]
    normalization_schemes: tuple[str, ...]
    use_mask_for_norm: tuple[bool, ...]
    foreground_intensity_properties_per_channel: Mapping[str, Mapping[str, Any]]
    resampling_fn_data: str
    resampling_fn_data_kwargs: Mapping[str, Any] = {}
    resampling_fn_seg: str
    resampling_fn_seg_kwargs: Mapping[str, Any] = {}
    resampling_fn_probabilities: str
    resampling_fn_probabilities_kwargs: Mapping[str, Any] = {}
    foreground_labels: tuple[int, ...] = ()

    @classmethod
    def parse(cls: type[Plan], fields: Mapping[str, Any]) -> Plan:
        """Returns the plan in `fields` (plain JSON types).

        Raises:
            ModelError: a key is missing, or its value is one that this client does not reproduce; the message names
                the key.
        """
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise ModelError(_in_words(error)) from None

    @model_validator(mode="after")
    def _consistent(self) -> NnunetPlan:
        if len(self.use_mask_for_norm) != self.channels:
            raise ValueError(
                f"use_mask_for_norm: expected {self.channels} entries, one a channel, found "
                f"{len(self.use_mask_for_norm)}"
            )
        for channel, scheme in enumerate(self.normalization_schemes):
            check_scheme(scheme, self.intensity_properties(channel), channel)
        _ = self.data_resampling, self.seg_resampling, self.probabilities_resampling
        return self

    @property
    def channels(self) -> int:
        """The number of images of one scan."""
        return len(self.normalization_schemes)

    @cached_property
    def data_resampling(self) -> ResamplingRule:
        """How scans are resampled."""
        return ResamplingRule.from_plan(self.resampling_fn_data, self.resampling_fn_data_kwargs, "resampling_fn_data")

    @cached_property
    def seg_resampling(self) -> ResamplingRule:
        """How label maps are resampled."""
        name, arguments = self.resampling_fn_seg, self.resampling_fn_seg_kwargs
        return ResamplingRule.from_plan(name, arguments, "resampling_fn_seg", is_seg=True)

    @cached_property
    def probabilities_resampling(self) -> ResamplingRule:
        """How logits are resampled to the scan's grid."""
        name, arguments = self.resampling_fn_probabilities, self.resampling_fn_probabilities_kwargs
        return ResamplingRule.from_plan(name, arguments, "resampling_fn_probabilities")

    def intensity_properties(self, channel: int) -> Mapping[str, Any]:
        """Returns the training set's statistics of a channel; empty where there are none."""
        return self.foreground_intensity_properties_per_channel.get(str(channel), {})

    def forward(self, values: Sequence[Any]) -> tuple[Any, Any, Any]:
        """Returns `values`, one for each axis, in the plan's order of axes."""
        first, second, third = (values[axis] for axis in self.transpose_forward)
        return first, second, third

    def target_spacing(self, spacing: Spacing) -> Spacing:
        """Returns the plan's spacing for a scan of `spacing`, whose axes are the plan's.

        A 2D plan keeps the spacing between slices, axis 0.
        """
        full = self.spacing if len(self.spacing) == 3 else (spacing[0], *self.spacing)
        return full[0], full[1], full[2]


class KeepLargest(BaseModel):
    """A step of nnU-Net's learned post-processing: keep only the largest component.

    Attributes:
        op: the name of the step.
        labels: the labels that count as one structure.
        background: what the other components become.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    op: Literal["keep_largest"]
    labels: Annotated[tuple[StrictInt, ...], Field(min_length=1)]
    background: int = 0


class NnunetModel(NnunetPlan):
    """The plan together with what a card says about the model's labels.

    Attributes:
        n_labels: the number of labels, background included.
        regions_class_order: for a model trained on regions, the label of each region, in the order of writing.
        postprocessing: learned steps, in order.
        image_reader_writer: the name of nnU-Net's reader.
    """

    n_labels: PositiveInt
    regions_class_order: tuple[int, ...] | None = None
    postprocessing: tuple[KeepLargest, ...] = ()
    image_reader_writer: str = ""

    @property
    def scores(self) -> int:
        """The number of scores of a voxel: one for each label, or one for each region."""
        return self.n_labels if self.regions_class_order is None else len(self.regions_class_order)


def _in_words(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(step) for step in first["loc"])
    if first["type"] == "missing":
        return f"the model's nnU-Net plan has no {key!r}; import the model again with voxtile-build nnunet"
    message = first["msg"].removeprefix("Value error, ")
    return f"{key}: {message}, found {first['input']!r}" if key else message
