"""The table [inferer], by its older name [tiling]: how the client cuts a scan into tiles and blends their scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, Tag, model_validator

from voxtile import card
from voxtile_build.spec.table import Finite, PositiveFloat, PositiveInt, Table


class Tiling(Table):
    """How a scan is cut and stitched. Numbers for each axis are those of the ROI's axes."""

    semantics: card.Semantics = Field(
        default="monai",
        description=f"whose sliding window the client reproduces: {' or '.join(get_args(card.Semantics))}",
    )
    roi_size: Annotated[tuple[PositiveInt, ...], Field(min_length=2, max_length=3)] = Field(
        description="size of a tile in voxels, one number an axis"
    )
    sw_batch_size: PositiveInt | None = Field(
        default=None, description="tiles in one run of the network; what serving.max_batch_size is where it is left out"
    )
    slice_axis: Literal[0, 1, 2] | None = Field(
        default=None, description="the axis along which a 2D network goes through the scan slice by slice"
    )
    multiple: PositiveInt | None = Field(
        default=None,
        description="for a 2D network: slices are sent whole, of any height and width, each padded up to a multiple of "
        "this number; choose one that the network's strides divide. roi_size is then the usual size of a slice",
    )
    overlap: Annotated[
        Annotated[card.Fraction, Tag("one")] | Annotated[tuple[card.Fraction, ...], Tag("each")], card.PerAxis
    ] = Field(
        default=0.25,
        description="share of the ROI that neighbouring tiles have in common: one number, or one for each axis of "
        "roi_size",
    )
    mode: card.Mode = Field(default="gaussian", description="weights of overlapping tiles: constant or gaussian")
    sigma_scale: Annotated[
        Annotated[PositiveFloat, Tag("one")] | Annotated[tuple[PositiveFloat, ...], Tag("each")], card.PerAxis
    ] = Field(
        default=0.125,
        description="width of the Gaussian as a share of the ROI: one number, or one for each axis of roi_size",
    )
    padding_mode: card.PaddingMode = Field(
        default="constant",
        description="what the network sees outside a scan that is smaller than the ROI: constant, which is cval, or "
        "the scan's own voxels: replicate, reflect or circular",
    )
    cval: Finite = Field(
        default=0.0, description="what the network sees outside the scan, after normalisation (MONAI's cval)"
    )
    mirror_axes: tuple[Literal[0, 1, 2], ...] = Field(
        default=(), description="axes over which the client mirrors tiles and averages; each doubles the work"
    )
    background_at_most: Finite | None = Field(
        default=None, description="values at or below this are outside the body, in the scan's units"
    )

    @model_validator(mode="before")
    @classmethod
    def _whole_slices(cls, data: Any) -> Any:
        """A tile that holds a whole slice overlaps with no other, so there is nothing to blend."""
        if not isinstance(data, dict) or data.get("multiple") is None:
            return data
        whole = {"overlap": 0.0, "mode": "constant", "sigma_scale": cls.model_fields["sigma_scale"].default}
        other = [key for key, value in whole.items() if data.get(key, value) != value]
        if other:
            raise ValueError(f"with multiple, slices are sent whole and nothing overlaps; leave out {', '.join(other)}")
        return {**data, **whole}

    @model_validator(mode="after")
    def _free_sizes(self) -> Tiling:
        if self.multiple is None:
            return self
        if self.semantics == "nnunet":
            raise ValueError("nnU-Net tiles with a fixed patch, and so does semantics = 'nnunet': leave out multiple")
        if any(size % self.multiple for size in self.roi_size):
            raise ValueError(
                f"expected roi_size in multiples of {self.multiple} (multiple), found {list(self.roi_size)}"
            )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Tiling:
        for key in ("overlap", "sigma_scale"):
            value = getattr(self, key)
            if isinstance(value, tuple) and len(value) != len(self.roi_size):
                raise ValueError(f"expected {key} to have one number for each axis of roi_size, found {list(value)}")
        if self.semantics == "nnunet" and self.cval:
            raise ValueError(f"nnU-Net pads with 0 after normalisation, found cval = {self.cval:g}")
        if self.padding_mode != "constant" and (self.cval or self.semantics == "nnunet"):
            raise ValueError(
                f"padding_mode {self.padding_mode!r} goes with MONAI's semantics, and without cval, which is for "
                "constant"
            )
        if (len(self.roi_size) == 2) != (self.slice_axis is not None):
            raise ValueError(
                f"a roi_size of two sizes and slice_axis go together, found roi_size {list(self.roi_size)}"
            )
        if any(axis >= len(self.roi_size) for axis in self.mirror_axes):
            raise ValueError(
                f"mirror_axes {list(self.mirror_axes)} names an axis that roi_size {list(self.roi_size)} has not"
            )
        return self

    def over(self, shape: Sequence[int]) -> Tiling:
        """The tiling of one volume: with `multiple`, its ROI is the smallest one that holds the whole volume.

        Args:
            shape: voxels along each axis of the ROI.
        """
        if self.multiple is None:
            return self
        return self.model_copy(update={"roi_size": tuple(-(-size // self.multiple) * self.multiple for size in shape)})

    @property
    def overlaps(self) -> tuple[float, ...]:
        """The overlap of each axis of the ROI."""
        return self.overlap if isinstance(self.overlap, tuple) else (self.overlap,) * len(self.roi_size)
