"""Defines the model card: all that a client must know about a model, as one JSON object.

The card travels as `parameters { key: "card" }` of the public entry's config.pbtxt. The classes here are the only
definition of its form: `python -m voxtile.card > docs/reference/card.schema.json` writes the published schema from
them. This module knows nothing of servers, scans or networks.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from decimal import ROUND_FLOOR, Decimal
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from voxtile.errors import ModelError
from voxtile.transforms.base import AxisCodes, per_axis
from voxtile.transforms.finishing import Finishing, finishing_of
from voxtile.transforms.postprocessing import Postprocessing
from voxtile.transforms.preprocessing import Preprocessing, Spacing

SCHEMA_VERSION = 1
"""Increased when a client of the older version would misread a card; an added optional field does not increase it."""

PositiveInt = Annotated[int, Field(gt=0)]
LabelValue = Annotated[int, Field(ge=0, le=65535)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Percent = Annotated[float, Field(ge=0, le=100)]
Orientation = AxisCodes
"""Axis codes as nibabel names them: one of R/L, one of A/P and one of S/I, in any order."""

InputDtype = Literal["fp32", "fp16", "int16"]
OutputDtype = Literal["fp32", "fp16", "uint8"]
ScoreKind = Literal["logits", "probabilities", "foreground", "labels"]
Activation = Literal["none", "softmax", "sigmoid"]
Semantics = Literal["monai", "nnunet"]
Mode = Literal["constant", "gaussian"]
PaddingMode = Literal["constant", "replicate", "reflect", "circular"]
DeviceKind = Literal["", "cpu", "gpu"]
Laterality = Literal["left", "right"]
StructureCategory = Literal["anatomy", "tissue", "substance", "lesion", "object"]


def _one_or_three(value: Any) -> str:
    return "each" if isinstance(value, (list, tuple)) else "one"


PerAxis = Discriminator(_one_or_three)
"""Either one number, or three: one for each axis of the scan."""

Fractions = Annotated[
    Annotated[Fraction, Tag("one")] | Annotated[tuple[Fraction, Fraction, Fraction], Tag("each")], PerAxis
]
PositiveFloats = Annotated[
    Annotated[PositiveFloat, Tag("one")] | Annotated[tuple[PositiveFloat, PositiveFloat, PositiveFloat], Tag("each")],
    PerAxis,
]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


CodeText = Annotated[str, Field(pattern=r"^[^\\\x00-\x1f]+$")]
"""Text that stands in one value of DICOM: a backslash would begin another one."""


class Code(_Part):
    """What a structure is, by a code of a terminology; DICOM objects carry it."""

    value: Annotated[CodeText, Field(max_length=16)] = Field(description="code, such as 64033007")
    meaning: Annotated[CodeText, Field(max_length=64)] = Field(description="meaning of the code in words")
    scheme: Annotated[CodeText, Field(max_length=16)] = Field(
        default="SCT", description="DICOM's name of the terminology; SCT is SNOMED CT"
    )
    laterality: Laterality | None = Field(default=None, description="side of a structure that is paired")
    category: StructureCategory = Field(default="anatomy", description="kind of thing that the structure is")


class Label(_Part):
    """A structure of the mask."""

    name: Annotated[str, Field(min_length=1)] = Field(description="name of the structure")
    value: Annotated[int, Field(ge=0, le=65535)] = Field(description="voxel value of the structure in the mask")
    code: Code | None = Field(default=None, description="what the structure is in DICOM; left out: by its name")


class IntensityNone(_Part):
    """The network takes the values as they are."""

    rule: Literal["none"] = Field(default="none", description="values go to the network as they are")


class IntensityRange(_Part):
    """MONAI's ScaleIntensityRange, `(x - a_min) / (a_max - a_min) * (b_max - b_min) + b_min`, computed in the graph."""

    rule: Literal["range"] = Field(default="range", description="maps a_min..a_max linearly to b_min..b_max")
    a_min: Finite = Field(description="value that becomes b_min, in the scan's units")
    a_max: Finite = Field(description="value that becomes b_max, in the scan's units; above a_min")
    b_min: Finite = Field(default=0.0, description="what a_min becomes")
    b_max: Finite = Field(default=1.0, description="what a_max becomes")
    clip: bool = Field(default=True, description="whether results are clipped to b_min..b_max")

    @model_validator(mode="after")
    def _not_empty(self) -> IntensityRange:
        if not self.a_max > self.a_min:
            raise ValueError(f"expected a_max above a_min, found a_min {self.a_min} and a_max {self.a_max}")
        return self


class IntensityFixed(_Part):
    """`(clip(x, lower, upper) - mean) / std` with statistics of the training set, computed in the graph."""

    rule: Literal["fixed"] = Field(
        default="fixed", description="(clip(x, lower, upper) - mean) / std, statistics of the training set"
    )
    mean: tuple[Finite, ...] = Field(description="what is subtracted, one number a channel")
    std: tuple[PositiveFloat, ...] = Field(description="what is divided by, one number above 0 a channel")
    lower: tuple[Finite, ...] | None = Field(default=None, description="lower clip, one number a channel")
    upper: tuple[Finite, ...] | None = Field(default=None, description="upper clip, one number a channel")


class IntensityZscore(_Part):
    """`(x - mean) / std` with statistics of the whole scan, which the client computes and sends as `intensity`.

    Mean and population standard deviation of each channel, in float64.
    """

    rule: Literal["zscore"] = Field(
        default="zscore", description="(x - mean) / std with statistics of the whole scan, for each channel"
    )
    mask: Literal["all", "nonzero"] = Field(default="all", description="voxels that the statistics are taken over")


class IntensityPercentile(_Part):
    """`(x - p_lower) / (p_upper - p_lower)` with percentiles of the whole scan, sent as `intensity`."""

    rule: Literal["percentile"] = Field(
        default="percentile", description="(x - p_lower) / (p_upper - p_lower), percentiles of the whole scan"
    )
    lower: Percent = Field(description="lower percentile, 0..100")
    upper: Percent = Field(description="upper percentile, 0..100; above lower")
    mask: Literal["all", "nonzero"] = Field(default="all", description="voxels that the percentiles are taken over")
    clip: bool = Field(default=False, description="whether results are clipped to 0..1")

    @model_validator(mode="after")
    def _not_empty(self) -> IntensityPercentile:
        if not self.upper > self.lower:
            raise ValueError(f"expected upper above lower, found lower {self.lower} and upper {self.upper}")
        return self


Intensity = Annotated[
    IntensityNone | IntensityRange | IntensityFixed | IntensityZscore | IntensityPercentile,
    Field(discriminator="rule"),
]


class Input(_Part):
    """The input tensor `roi` [batch, channel, *spatial].

    Attributes:
        dtype: Its type.
        padding: The value that marks a voxel outside the scan. It is the type's lowest value, which no voxel of a scan
            may have. After normalisation the graph replaces it by the value that the model pads with (usually 0), as
            MONAI and nnU-Net do.
    """

    dtype: InputDtype = "fp32"
    padding: float


class Output(_Part):
    """The output tensor `scores` [batch, score, *spatial].

    Attributes:
        kind: `logits`; `probabilities` (of every class, or of every region); `foreground` (the probability of one
            class alone); `labels` (the class index, one channel).
        activation: Applied to stitched logits, before they are resampled to the scan's grid and become labels.
        dtype: Its type.
        scores: The number of scores of a voxel.
        scale: The stored value of probability 1 (255 for uint8, else 1).
    """

    kind: ScoreKind = "logits"
    activation: Activation = "none"
    dtype: OutputDtype = "fp32"
    scores: PositiveInt
    scale: PositiveFloat = 1.0


class Tiling(_Part):
    """How a scan is cut into tiles and stitched.

    `overlap` and `sigma_scale` are one number, or three: one for each axis of the scan. For a 2D network the slice
    axis is ignored.

    Attributes:
        semantics: The library whose result is reproduced.
        overlap: The fraction of the ROI that neighbouring tiles share (nnU-Net's tile_step_size is 1 - overlap).
        padding_mode: How a scan smaller than the ROI is padded: with the value that marks a voxel outside the scan, or
            with its own voxels, as `torch.nn.functional.pad` does.
        mode: How tiles are weighted where they overlap.
        sigma_scale: The Gaussian's standard deviation, as a fraction of the ROI's size.
    """

    semantics: Semantics = "monai"
    overlap: Fractions = 0.25
    padding_mode: PaddingMode = "constant"
    mode: Mode = "gaussian"
    sigma_scale: PositiveFloats = 0.125


class BackgroundRule(_Part):
    """Where no label can be: voxels at or below `at_most` in every channel are outside the body.

    Attributes:
        at_most: A threshold in the scan's own units.
    """

    at_most: float


Bounds = tuple[Finite, Finite]


class InputRange(_Part):
    """What the scans of a certificate hold in one channel: of each figure the lowest and the highest of any scan.

    The values are those of the body, without the background. They are in the scan's own units, or normalised where the
    model normalises by statistics of the whole scan.

    Attributes:
        channel: The channel's name.
        mean: The mean.
        std: The standard deviation.
        p1: The first percentile.
        p99: The 99th percentile.
    """

    channel: str
    mean: Bounds
    std: Bounds
    p1: Bounds
    p99: Bounds


class Certificate(_Part):
    """A summary of an engine's certificate.

    Attributes:
        sha256: The digest of its certificate.json.
        accepted: Whether the engine met all limits.
        precision: The precision it computes in.
        dice_min: The lowest Dice of any label of any sample, against the reference. Labels of a few voxels count only
            if more than a few of them change.
        changed_fraction: The fraction of voxels whose label differs from the reference.
        max_abs_error: The largest difference of a score from the reference.
        device: The kind of device that it was measured on; empty where an older build did not say.
        device_name: The name of that device.
        serves_on: The kind of device that the engine runs on; empty where an older build did not say.
        verified_on: Devices that the engine runs on and that `voxtile-build verify` has measured it on, by name.
        unseen_labels: Labels that its samples hardly show: their Dice proves nothing.
        inputs: What the scans that it was measured on hold, by channel; empty where it saw none but a generated one.
    """

    sha256: str
    accepted: bool
    precision: str
    dice_min: float
    changed_fraction: float
    max_abs_error: float
    device: DeviceKind = ""
    device_name: str = ""
    serves_on: DeviceKind = ""
    verified_on: tuple[str, ...] = ()
    unseen_labels: tuple[str, ...] = ()
    inputs: tuple[InputRange, ...] = ()

    @property
    def certified_where_served(self) -> bool:
        """Whether the engine was measured on a device of the kind that it runs on."""
        return self.serves_on == self.device or bool(self.verified_on)

    @property
    def reservations(self) -> tuple[str, ...]:
        """What the certificate does not prove, a few words each; empty if there is nothing."""
        device = () if self.certified_where_served else ("not certified on this device",)
        labels = (f"not seen: {_first(self.unseen_labels)}",) if self.unseen_labels else ()
        return (*device, *labels)


MOST_NAMES = 5
"""Names in a list for people; a model may have more than a hundred labels."""


def _first(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


class StudentOf(_Part):
    """The teacher that a network was distilled from, and how far the two agree.

    The agreement says nothing of how good the teacher is.

    Attributes:
        teacher: The teacher's name.
        weights_sha256: The digest of the teacher's weights.
        dice_min: The lowest Dice between the two of any label of any scan that was held out from the training. A scan
            in which a few voxels of a small label change counts only if no other does.
        scans: The number of these scans.
        block: Whether the one scan was only a part that was held out; the rest of it was trained on.
        unseen_labels: Labels that these scans hardly show: nobody knows how far the two agree on them.
    """

    teacher: Annotated[str, Field(min_length=1)]
    weights_sha256: Annotated[str, Field(min_length=1)]
    dice_min: Annotated[float, Field(ge=0, le=1)]
    scans: PositiveInt
    block: bool = False
    unseen_labels: tuple[str, ...] = ()

    @property
    def in_words(self) -> str:
        """Of whom it is a student, and how far they agree, in a few words."""
        return f"student of {self.teacher}: {agreement_in_words(self.dice_min, self.scans, self.block)}"

    @property
    def reservations(self) -> tuple[str, ...]:
        """What the agreement does not show, a few words each; empty if there is nothing."""
        if not self.unseen_labels:
            return ()
        return (f"student of {self.teacher}: not seen: {_first(self.unseen_labels)}",)


def agreement_in_words(dice_min: float, scans: int, block: bool) -> str:
    """How far a student agrees with its teacher, and on what, in a few words."""
    where = "a part of one scan" if block else f"{scans} held-out scan{'s' if scans > 1 else ''}"
    return f"Dice ≥ {rounded_down(dice_min)} to it on {where}"


def rounded_down(dice: float) -> str:
    """A Dice with four digits, rounded down: it stands after a sign for "at least"."""
    return str(Decimal(str(dice)).quantize(Decimal("0.0001"), ROUND_FLOOR))


class Provenance(_Part):
    """Where the model comes from.

    Attributes:
        network: The architecture's name.
        weights_sha256: The digest of the weights that it was built from.
        onnx_sha256: The digest of the ONNX file that all engines were built from.
        source: Where the weights come from.
        licence: The terms under which they may be used.
        versions: Versions of the libraries that built the entry, by name.
        student_of: The teacher of a network that was distilled; None for any other.
    """

    network: str
    weights_sha256: str
    onnx_sha256: str
    source: str = ""
    licence: str = ""
    versions: dict[str, str] = {}
    student_of: StudentOf | None = None


class PartModel(_Part):
    """One of the models of a set.

    Attributes:
        model: Its public name.
        weights_sha256: The digest of its weights; a model that was built anew without the set has others.
        labels: What each of its labels is in the mask; every other one is background.
    """

    model: Annotated[str, Field(min_length=1)]
    weights_sha256: str
    labels: Annotated[dict[LabelValue, LabelValue], Field(min_length=1)]


class CleaningStep(_Part):
    """Removes components of labels from a mask on the common grid.

    Attributes:
        labels: The values of the labels, each by itself.
        at_most_mm3: Components up to this volume are removed; None for all but the largest one.
    """

    labels: Annotated[tuple[LabelValue, ...], Field(min_length=1)]
    at_most_mm3: PositiveFloat | None = None


class Crop(_Part):
    """The part of a scan that a set looks at, found by another model.

    Attributes:
        model: Its public name.
        labels: The values of the labels that are looked for.
        margin_mm: Millimetres that are kept around them, along each axis of the scan.
    """

    model: Annotated[str, Field(min_length=1)]
    labels: Annotated[tuple[LabelValue, ...], Field(min_length=1)]
    margin_mm: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Parts(_Part):
    """Several models that make one mask together, on a common grid of the card's orientation and spacing.

    Attributes:
        models: In the order in which they are painted into the mask: a later one covers an earlier one.
        order: The order of the splines that bring a scan to the common grid.
        cleaning: What is done to the mask on the common grid, in order.
        crop: Where in a scan they look; None for all of it.
    """

    models: Annotated[tuple[PartModel, ...], Field(min_length=1)]
    order: Annotated[int, Field(ge=0, le=5)] = 1
    cleaning: tuple[CleaningStep, ...] = ()
    crop: Crop | None = None


class Card(_Part):
    """A model's card. Spatial axes are in the order of `orientation`; with `nnunet` in nnU-Net's own (z, y, x).

    Attributes:
        schema_version: The version of this schema.
        name: The public name of the entry.
        title: What the model segments, for a reader.
        version: Which version of the public model this is.
        channels: The names of the input channels, in order.
        orientation: The axis codes of the model's grid, as nibabel names them; None for the scan's own.
        spacing: The voxel size of the model's grid in millimetres; None for the scan's own.
        preprocessing: Steps that the client carries out in place of an orientation and a spacing, before `intensity`:
            MONAI's transforms with their arguments.
        postprocessing: Steps that scores go through after stitching, where they do more than `output.activation`,
            resampling to the scan's grid, and the largest score or one half. MONAI's transforms with their arguments;
            labels are numbers of scores, from 0, and `labels` says what they become.
        intensity: How voxel values are normalised.
        roi_size: The size of a tile: three axes, or two for a 2D network.
        slice_axis: The axis of the scan that a 2D network's slices are taken across.
        multiple: For a 2D network that takes whole slices of any height and width: each slice is padded up to a
            multiple of this number. roi_size is then the usual size, and tiles do not overlap.
        input: The input tensor.
        output: The output tensor.
        labels: The structures of the mask; the first one is the background.
        regions: Whether labels are regions that may overlap, each decided by a score of its own.
        region_order: The names of the regions in the order in which they are painted into the mask, where it is not
            that of `labels`: a later region covers an earlier one.
        tiling: How a scan is cut and stitched.
        mirror_axes: The spatial axes of a tile that test-time augmentation flips.
        background: Where no label can be; None where the model has no such rule.
        nnunet: What only nnU-Net's chain needs; None for MONAI's chain.
        parts: The models of a set, which has no network of its own: tiles are those of its models. None for any other.
        engine: The engine behind the public name.
        certificates: The certificate of each engine, by the engine's name.
        provenance: Where the model comes from.
    """

    schema_version: int
    name: str
    title: str = ""
    version: PositiveInt = 1
    channels: Annotated[tuple[str, ...], Field(min_length=1)]
    orientation: Orientation | None
    spacing: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None
    preprocessing: Annotated[tuple[Preprocessing, ...], Field(min_length=1)] | None = None
    postprocessing: Annotated[tuple[Postprocessing, ...], Field(min_length=1)] | None = None
    intensity: Intensity
    roi_size: Annotated[tuple[PositiveInt, ...], Field(min_length=2, max_length=3)]
    slice_axis: Literal[0, 1, 2] | None = None
    multiple: PositiveInt | None = None
    input: Input
    output: Output
    labels: Annotated[tuple[Label, ...], Field(min_length=1)]
    regions: bool = False
    region_order: tuple[str, ...] | None = None
    tiling: Tiling
    mirror_axes: tuple[Literal[0, 1, 2], ...] = ()
    background: BackgroundRule | None = None
    nnunet: dict[str, Any] | None = None
    parts: Parts | None = None
    engine: str
    certificates: dict[str, Certificate]
    provenance: Provenance

    @property
    def whole_scan_intensity(self) -> bool:
        """Whether the model takes the tensor `intensity` [batch, channel, 2]: what to subtract and to divide by."""
        return self.intensity.rule in ("zscore", "percentile")

    @property
    def finishing(self) -> Finishing | None:
        """What `postprocessing` amounts to; None without it."""
        return None if self.postprocessing is None else finishing_of(self.postprocessing)

    @property
    def resampled_to(self) -> tuple[float, float, float] | None:
        """Millimetres between the voxels that the model was trained with; None where a scan keeps its own."""
        steps = (step.pixdim for step in self.preprocessing or () if isinstance(step, Spacing))
        wanted = next(steps, self.spacing)
        return None if wanted is None else per_axis(wanted)

    @property
    def input_channels(self) -> tuple[str, ...]:
        """The channels that a scan must bring; a cascade's second stage makes others from its first stage's labels."""
        made = len(self.nnunet.get("label_channels") or ()) if self.nnunet else 0
        return self.channels[: len(self.channels) - made]

    def takes(self, size: Sequence[int]) -> bool:
        """Whether the model takes a tile of spatial `size`."""
        if self.multiple is None:
            return tuple(size) == self.roi_size
        return len(size) == len(self.roi_size) and all(side > 0 and side % self.multiple == 0 for side in size)

    @property
    def painting_order(self) -> tuple[int, ...]:
        """Indices of the labels in the order in which regions are painted into the mask."""
        names = [label.name for label in self.labels]
        return tuple(range(len(names))) if self.region_order is None else tuple(map(names.index, self.region_order))

    @property
    def previous_stage(self) -> str | None:
        """The public name of a cascade's first stage, whose labels this model takes as channels; None without one."""
        return self.nnunet.get("previous_stage") if self.nnunet else None

    @property
    def models_behind(self) -> tuple[str, ...]:
        """The public names of the models that a client runs for this one: those of a set, and a cascade's first stage.

        Not those behind these.
        """
        crop = self.parts.crop.model if self.parts and self.parts.crop else None
        parts = [part.model for part in self.parts.models] if self.parts else []
        return tuple(name for name in (crop, *parts, self.previous_stage) if name)

    @model_validator(mode="after")
    def _consistent(self) -> Card:
        if (len(self.roi_size) == 2) != (self.slice_axis is not None):
            raise ValueError(f"a 2D roi_size needs a slice_axis; found {self.roi_size} and {self.slice_axis}")
        if self.multiple is not None and len(self.roi_size) != 2:
            raise ValueError(f"multiple is only for a 2D roi_size; found {self.roi_size}")
        wanted = 1 if self.output.kind in ("foreground", "labels") else len(self.labels)
        if self.output.scores != wanted:
            raise ValueError(
                f"{self.output.kind} of {len(self.labels)} labels need {wanted} scores, not {self.output.scores}"
            )
        names = sorted(label.name for label in self.labels)
        if self.region_order is not None and (not self.regions or sorted(self.region_order) != names):
            raise ValueError(f"region_order {self.region_order} must name each of the regions {names} once")
        plan = self.nnunet or {}
        for key, kinds in (("label_channels", (list, tuple)), ("previous_stage", (str,))):
            if key in plan and plan[key] is not None and not isinstance(plan[key], kinds):
                raise ValueError(f"nnunet.{key}: expected {kinds[0].__name__}, found {plan[key]!r}")
        self._check_chains()
        self._check_parts()
        if any(axis >= len(self.roi_size) for axis in self.mirror_axes):
            raise ValueError(f"mirror_axes {self.mirror_axes} name an axis that roi_size {self.roi_size} lacks")
        return self

    def _check_parts(self) -> None:
        values = {label.value for label in self.labels}
        for part in self.parts.models if self.parts else ():
            if not values >= set(part.labels.values()):
                raise ValueError(
                    f"parts: {part.model} paints values that are no labels: {sorted(part.labels.values())}"
                )

    def _check_chains(self) -> None:
        if self.preprocessing is not None and (self.orientation is not None or self.spacing is not None):
            raise ValueError("preprocessing stands in place of orientation and spacing, found both")
        if self.nnunet is not None and (self.preprocessing is not None or self.postprocessing is not None):
            raise ValueError("nnunet has its own chain, found also preprocessing or postprocessing")
        finishing = self.finishing
        if finishing is None:
            return
        if self.regions != (finishing.threshold is not None):
            raise ValueError("postprocessing: regions are decided by a threshold, and classes by argmax")
        if self.output.kind == "foreground":
            raise ValueError("postprocessing: expected a score for each label, found kind 'foreground'")


def parse_card(text: str, model: str) -> Card:
    """Reads a card.

    Args:
        text: The card as JSON.
        model: The name of the entry that carries it, for messages.

    Returns:
        The card.

    Raises:
        ModelError: The text is no JSON object, is of a newer schema, or does not fit the schema.
    """
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of too many digits, and too many brackets
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
    """The JSON schema of a card."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Card.model_json_schema()}


def schema_text() -> str:
    """The text of docs/reference/card.schema.json."""
    return json.dumps(schema(), indent=2) + "\n"


if __name__ == "__main__":
    sys.stdout.write(schema_text())
