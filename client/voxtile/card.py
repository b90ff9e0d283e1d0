"""The model card: all that a client must know about a model, as one JSON object.

The card travels as `parameters { key: "card" }` of the public entry's config.pbtxt. This module is the one
definition of its form; `docs/reference/card.schema.json` is generated from it, and the build side validates what
it writes against that file. This module knows nothing of servers, scans or networks.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from voxtile.errors import ModelError

SCHEMA_VERSION = 1
"""Raised when a client of the older version would misread a card, never for an added optional field."""

AXIS_CODES = "^([RL][AP][SI]|[RL][SI][AP]|[AP][RL][SI]|[AP][SI][RL]|[SI][RL][AP]|[SI][AP][RL])$"
"""Orientations as nibabel names them: one of R/L, one of A/P and one of S/I, in any order."""

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


def _one_or_three(value: Any) -> str:
    return "each" if isinstance(value, (list, tuple)) else "one"


PerAxis = Discriminator(_one_or_three)
"""One number, or one for each axis of the scan."""

Fractions = Annotated[
    Annotated[Fraction, Tag("one")] | Annotated[tuple[Fraction, Fraction, Fraction], Tag("each")], PerAxis
]
PositiveFloats = Annotated[
    Annotated[PositiveFloat, Tag("one")] | Annotated[tuple[PositiveFloat, PositiveFloat, PositiveFloat], Tag("each")],
    PerAxis,
]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Label(_Part):
    """A structure of the mask: its name and the voxel value that stands for it."""

    name: str
    value: Annotated[int, Field(ge=0, le=65535)]


class IntensityNone(_Part):
    """Values go to the network as they are."""

    rule: Literal["none"] = "none"


class IntensityRange(_Part):
    """`(x - a_min) / (a_max - a_min) * (b_max - b_min) + b_min`, clipped where `clip`; inside the graph."""

    rule: Literal["range"] = "range"
    a_min: float
    a_max: float
    b_min: float = 0.0
    b_max: float = 1.0
    clip: bool = True

    @model_validator(mode="after")
    def _not_empty(self) -> IntensityRange:
        if not self.a_max > self.a_min:
            raise ValueError(f"a_max ({self.a_max}) must lie above a_min ({self.a_min})")
        return self


class IntensityFixed(_Part):
    """`(clip(x, lower, upper) - mean) / std` with figures of the training set, one a channel; inside the graph."""

    rule: Literal["fixed"] = "fixed"
    mean: tuple[float, ...]
    std: tuple[PositiveFloat, ...]
    lower: tuple[float, ...] | None = None
    upper: tuple[float, ...] | None = None


class IntensityZscore(_Part):
    """`(x - mean) / std` with figures of the whole scan, taken by the client, sent as `intensity`.

    mask: which voxels the figures are taken over; mean and population standard deviation in float64, per channel.
    """

    rule: Literal["zscore"] = "zscore"
    mask: Literal["all", "nonzero"] = "all"


class IntensityPercentile(_Part):
    """`(x - p_low) / (p_high - p_low)` with percentiles (0..100) of the whole scan, sent as `intensity`."""

    rule: Literal["percentile"] = "percentile"
    lower: Annotated[float, Field(ge=0, le=100)]
    upper: Annotated[float, Field(ge=0, le=100)]
    mask: Literal["all", "nonzero"] = "all"
    clip: bool = False

    @model_validator(mode="after")
    def _not_empty(self) -> IntensityPercentile:
        if not self.upper > self.lower:
            raise ValueError(f"upper ({self.upper}) must lie above lower ({self.lower})")
        return self


Intensity = Annotated[
    IntensityNone | IntensityRange | IntensityFixed | IntensityZscore | IntensityPercentile,
    Field(discriminator="rule"),
]


class Input(_Part):
    """The tensor `roi` [batch, channel, *spatial].

    padding: the value that marks a voxel outside the scan. After normalisation the graph turns it into 0 or
    what else the model pads with, as MONAI and nnU-Net do; it is the type's lowest value, which no scan voxel may take.
    """

    dtype: Literal["fp32", "fp16", "int16"] = "fp32"
    padding: float


class Output(_Part):
    """The tensor `scores` [batch, score, *spatial].

    kind: `logits`; `probabilities` (of every class, or of every region); `foreground` (the probability of one
    class alone); `labels` (the class index, one channel).
    scale: the stored value of probability 1 (255 for uint8, else 1).
    activation: what stitched logits go through before they are put back on the scan's grid and decided on.
    """

    kind: Literal["logits", "probabilities", "foreground", "labels"] = "logits"
    activation: Literal["none", "softmax", "sigmoid"] = "none"
    dtype: Literal["fp32", "fp16", "uint8"] = "fp32"
    scores: PositiveInt
    scale: PositiveFloat = 1.0


class Tiling(_Part):
    """How the scan is cut and stitched. `monai` and `nnunet` each give that library's own result.

    overlap: share of the ROI that neighbours share (nnU-Net's step is 1 - overlap).
    sigma_scale: of the Gaussian, as a share of the ROI's size.
    Either is one number, or three, one for each axis of the scan; what the axis of a 2D network's slices has counts
    for nothing.
    """

    semantics: Literal["monai", "nnunet"] = "monai"
    overlap: Fractions = 0.25
    mode: Literal["constant", "gaussian"] = "gaussian"
    sigma_scale: PositiveFloats = 0.125


class BackgroundRule(_Part):
    """Where nothing can be: voxels at or below `at_most` (in the scan's units, every channel) are outside the body."""

    at_most: float


class Certificate(_Part):
    """An engine's proof in short: the digest of its certificate.json and the figures that a reader asks for first."""

    sha256: str
    accepted: bool
    precision: str
    dice_min: float
    changed_fraction: float
    max_abs_error: float


class Provenance(_Part):
    """Where the model comes from: hashes of what went in, versions of what made it, and the terms of its use."""

    network: str
    weights_sha256: str
    onnx_sha256: str
    source: str = ""
    licence: str = ""
    versions: dict[str, str] = {}


class Card(_Part):
    """A model's card. Spatial axes are in the order of `orientation`; with `nnunet` in nnU-Net's own (z, y, x).

    multiple: of a 2D network that takes whole slices of any height and width, each padded up to a multiple of it;
    roi_size is then the usual size, and nothing overlaps.
    """

    schema_version: int
    name: str
    title: str = ""
    channels: Annotated[tuple[str, ...], Field(min_length=1)]
    orientation: (
        Annotated[
            str,
            Field(pattern="^[RL][AP][SI]$|^[RL][SI][AP]$|^[AP][RL][SI]$|^[AP][SI][RL]$|^[SI][RL][AP]$|^[SI][AP][RL]$"),
        ]
        | None
    )
    spacing: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None
    intensity: Intensity
    roi_size: Annotated[tuple[PositiveInt, ...], Field(min_length=2, max_length=3)]
    slice_axis: Literal[0, 1, 2] | None = None
    multiple: PositiveInt | None = None
    input: Input
    output: Output
    labels: Annotated[tuple[Label, ...], Field(min_length=1)]
    regions: bool = False
    tiling: Tiling
    mirror_axes: tuple[Literal[0, 1, 2], ...] = ()
    background: BackgroundRule | None = None
    nnunet: dict[str, Any] | None = None
    engine: str
    certificates: dict[str, Certificate]
    provenance: Provenance

    @property
    def whole_scan_intensity(self) -> bool:
        """Whether the model takes the tensor `intensity` [batch, channel, 2]: what to subtract, what to divide by."""
        return self.intensity.rule in ("zscore", "percentile")

    @property
    def input_channels(self) -> tuple[str, ...]:
        """The channels that a scan brings; a cascade's second stage gets others from the labels of its first."""
        made = len(self.nnunet.get("label_channels", ())) if self.nnunet else 0
        return self.channels[: len(self.channels) - made]

    def takes(self, size: Sequence[int]) -> bool:
        """Whether a tile of spatial `size` is one that the model takes."""
        if self.multiple is None:
            return tuple(size) == self.roi_size
        return len(size) == len(self.roi_size) and all(side > 0 and side % self.multiple == 0 for side in size)

    @property
    def previous_stage(self) -> str | None:
        """The public name of a cascade's first stage, whose labels this model takes as channels."""
        return self.nnunet.get("previous_stage") if self.nnunet else None

    @model_validator(mode="after")
    def _consistent(self) -> Card:
        if (len(self.roi_size) == 2) != (self.slice_axis is not None):
            raise ValueError("a 2D roi and slice_axis go together")
        if self.multiple is not None and len(self.roi_size) != 2:
            raise ValueError("multiple is for a 2D roi")
        wanted = 1 if self.output.kind in ("foreground", "labels") else len(self.labels)
        if self.output.scores != wanted:
            raise ValueError(
                f"{self.output.kind} of {len(self.labels)} labels need {wanted} scores, not {self.output.scores}"
            )
        if any(axis >= len(self.roi_size) for axis in self.mirror_axes):
            raise ValueError(f"mirror_axes {self.mirror_axes} name an axis that the ROI {self.roi_size} has not")
        return self


def parse_card(text: str, model: str) -> Card:
    """The card in `text` (JSON), as the entry `model` carries it.

    Raises ModelError for a card that is no JSON object, of a newer schema, or does not fit the schema.
    """
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise ModelError(f"model {model!r}: its card is not JSON ({error}); build the entry again") from None
    if not isinstance(fields, dict):
        raise ModelError(f"model {model!r}: its card should be a JSON object, found {type(fields).__name__}")
    version = fields.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise ModelError(
            f"model {model!r}: its card has schema version {version}, this client reads up to "
            f"{SCHEMA_VERSION}; update voxtile"
        )
    try:
        return Card.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"]) or "card"
        raise ModelError(f"model {model!r}: its card does not fit the schema at {where}: {first['msg']}") from None


def schema() -> dict[str, Any]:
    """The JSON schema of a card, as published in docs/reference/card.schema.json."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Card.model_json_schema()}
