"""The model spec: what models/NAME.toml says, checked. The one place where ROI, labels and rules are written.

Every key has a description; a refused file is answered with the key's path and that description. This module
reads TOML and knows nothing of networks, engines or servers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tomllib
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, field_validator, model_validator

from voxtile_build.errors import SpecError
from voxtile_build.spec.explain import explain

EngineName = Literal["onnxruntime", "openvino", "tensorrt"]
InputDtype = Literal["fp32", "fp16", "int16"]
OutputDtype = Literal["fp32", "fp16", "uint8"]
ScoreKind = Literal["logits", "probabilities", "foreground", "labels"]

ENGINE_NAMES: tuple[EngineName, ...] = get_args(EngineName)
ORIENTATIONS = r"^([RL][AP][SI]|[RL][SI][AP]|[AP][RL][SI]|[AP][SI][RL]|[SI][RL][AP]|[SI][AP][RL])$"

PositiveInt = Annotated[int, Field(gt=0)]
NaturalInt = Annotated[int, Field(ge=0)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Overlap = Annotated[float, Field(ge=0, lt=1)]
AnyPath = Annotated[Path, Field(strict=False)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Part(BaseModel):
    # Strict: "4" is no number and 1 is no truth value; in TOML whoever writes it knows the type.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _as_scans(value: Any) -> Any:
    """A file alone is a scan of one channel."""
    if not isinstance(value, list):
        return value
    return tuple((scan,) if isinstance(scan, str) else _as_tuple(scan) for scan in value)


class Network(_Part):
    name: str = Field(default="", description="name of the network; `voxtile-build networks` lists them")
    args: dict[str, Any] = Field(default={}, description="arguments of the network's constructor, by name")
    file: AnyPath | None = Field(
        default=None,
        description="in place of name and weights, a file that holds both, relative to the spec: .onnx, .pt "
        "(TorchScript) or .pt2 (torch.export)",
    )
    sha256: Sha256 | None = Field(
        default=None, description="SHA-256 of the network's file, in hexadecimal; another file is refused"
    )
    head: int | None = Field(
        default=None, description="which of several outputs holds the scores, 0 the first, -1 the last"
    )

    @model_validator(mode="after")
    def _one_source(self) -> Network:
        if bool(self.name) == (self.file is not None):
            found = "both" if self.name else "neither"
            raise ValueError(f"expected either name, with args, or file, with sha256, found {found}")
        if (self.file is None) != (self.sha256 is None):
            raise ValueError("file and sha256 go together; `sha256sum FILE` gives it")
        if self.file is not None and self.args:
            raise ValueError(f"args {list(self.args)} are those of a network by name; a file has its own")
        return self

    @property
    def title(self) -> str:
        """The network's name, or that of its file."""
        return self.file.name if self.file is not None else self.name


class Weights(_Part):
    file: AnyPath = Field(description="weights file, relative to the spec: safetensors or a state dict")
    sha256: Sha256 = Field(description="SHA-256 of the weights file, in hexadecimal; another file is refused")
    source: str = Field(default="", description="where the weights come from, for the card")
    licence: str = Field(default="", description="the terms of their use, for the card")


class IntensityNone(_Part):
    rule: Literal["none"] = Field(default="none", description="values go to the network as they are")


class IntensityRange(_Part):
    rule: Literal["range"] = Field(description="maps a_min..a_max linearly to b_min..b_max")
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
    rule: Literal["fixed"] = Field(description="(clip(x, lower, upper) - mean) / std, figures of the training set")
    mean: tuple[Finite, ...] = Field(description="what is subtracted, one figure a channel")
    std: tuple[PositiveFloat, ...] = Field(description="what is divided by, one figure above 0 a channel")
    lower: tuple[Finite, ...] | None = Field(default=None, description="lower clip, one figure a channel")
    upper: tuple[Finite, ...] | None = Field(default=None, description="upper clip, one figure a channel")

    _tuples = field_validator("mean", "std", "lower", "upper", mode="before")(_as_tuple)


class IntensityZscore(_Part):
    rule: Literal["zscore"] = Field(description="(x - mean) / std with figures of the whole scan, a channel each")
    mask: Literal["all", "nonzero"] = Field(default="all", description="voxels the figures are taken over")
    keep_zero: bool = Field(
        default=False, description="whether voxels of value 0 stay 0, as with MONAI's NormalizeIntensity(nonzero=True)"
    )


class IntensityPercentile(_Part):
    rule: Literal["percentile"] = Field(description="(x - p_low) / (p_high - p_low), percentiles of the whole scan")
    lower: Annotated[float, Field(ge=0, le=100)] = Field(description="lower percentile, 0..100")
    upper: Annotated[float, Field(ge=0, le=100)] = Field(description="upper percentile, 0..100; above lower")
    mask: Literal["all", "nonzero"] = Field(default="all", description="voxels the percentiles are taken over")
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
    channels: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        description="names of the input channels, in the network's order"
    )
    dtype: InputDtype = Field(default="fp32", description="type in which a ROI travels: fp32, fp16 or int16")
    orientation: Annotated[str, Field(pattern=ORIENTATIONS)] | None = Field(
        default=None, description="axis codes that the network expects, e.g. RAS; left out: as stored"
    )
    spacing: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = Field(
        default=None, description="voxel size in mm that the network expects; left out: as stored"
    )
    intensity: Intensity = Field(default=IntensityNone(), description="how values are normalised")

    _tuples = field_validator("channels", "spacing", mode="before")(_as_tuple)

    @model_validator(mode="after")
    def _a_figure_a_channel(self) -> Input:
        if isinstance(self.intensity, IntensityFixed):
            for key in ("mean", "std", "lower", "upper"):
                figures = getattr(self.intensity, key)
                if figures is not None and len(figures) != len(self.channels):
                    raise ValueError(
                        f"expected intensity.{key} with one figure for each of {len(self.channels)} channels, "
                        f"found {len(figures)}"
                    )
        return self


class Label(_Part):
    name: Annotated[str, Field(min_length=1)] = Field(description="name of the structure")
    value: Annotated[int, Field(ge=0, le=65535)] = Field(description="voxel value of the structure in the mask")


class Output(_Part):
    scores: ScoreKind = Field(
        default="logits", description="what comes back: logits, probabilities, foreground or labels"
    )
    dtype: OutputDtype = Field(default="fp32", description="type in which scores travel: fp32, fp16 or uint8")
    labels: Annotated[tuple[Label, ...], Field(min_length=1)] = Field(
        description="the network's output channels in order: names (value = index, or index + 1 for regions) "
        "or { name, value }"
    )
    foreground: str | None = Field(default=None, description="the label that scores = 'foreground' returns")
    regions: bool = Field(default=False, description="channels overlap: sigmoid each instead of softmax over all")
    activation: Literal["none", "softmax", "sigmoid"] = Field(
        default="none",
        description="what the client puts stitched logits through before it resamples them to the scan's grid",
    )

    @model_validator(mode="before")
    @classmethod
    def _values_of_names(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(data.get("labels"), list | tuple):
            return data
        first = 1 if data.get("regions") is True else 0
        labels = tuple(
            {"name": label, "value": index} if isinstance(label, str) else label
            for index, label in enumerate(data["labels"], first)
        )
        return {**data, "labels": labels}

    @model_validator(mode="after")
    def _consistent(self) -> Output:
        names = [label.name for label in self.labels]
        if len(set(names)) < len(names) or len({label.value for label in self.labels}) < len(names):
            raise ValueError(f"expected every label's name and value once, found {names}")
        if (self.scores == "foreground") != (self.foreground is not None):
            raise ValueError("scores = 'foreground' and the key foreground go together")
        if self.foreground is not None and self.foreground not in names:
            raise ValueError(f"expected foreground to be one of {names}, found {self.foreground!r}")
        self._check_types()
        return self

    def _check_types(self) -> None:
        if self.activation != "none" and self.scores != "logits":
            raise ValueError(f"activation {self.activation!r} is for logits, found scores = {self.scores!r}")
        if self.activation == ("softmax" if self.regions else "sigmoid"):
            raise ValueError("regions overlap and take sigmoid, labels that exclude one another take softmax")
        if self.scores == "logits" and self.dtype == "uint8":
            raise ValueError("logits have no fixed range and cannot travel as uint8; use probabilities or fp16")
        if self.scores == "labels" and self.dtype != "uint8":
            raise ValueError(f"labels travel as uint8, found dtype {self.dtype!r}")
        if self.scores == "labels" and self.regions:
            raise ValueError("overlapping regions have no one label a voxel; use probabilities")
        if self.scores == "labels" and len(self.labels) > 256:
            raise ValueError(f"uint8 holds 256 labels, found {len(self.labels)}; use probabilities")

    @property
    def foreground_index(self) -> int:
        """Index among the labels of the class that is returned alone."""
        return [label.name for label in self.labels].index(str(self.foreground))

    @property
    def score_count(self) -> int:
        """How many channels the tensor `scores` has."""
        return 1 if self.scores in ("foreground", "labels") else len(self.labels)

    @property
    def scale(self) -> float:
        """The stored value of probability 1."""
        return 255.0 if self.dtype == "uint8" and self.scores != "labels" else 1.0


def _one_or_each(value: Any) -> str:
    return "each" if isinstance(value, list | tuple) else "one"


class Tiling(_Part):
    semantics: Literal["monai", "nnunet"] = Field(
        default="monai", description="whose sliding window the client reproduces: monai or nnunet"
    )
    roi_size: Annotated[tuple[PositiveInt, ...], Field(min_length=2, max_length=3)] = Field(
        description="size of a tile in voxels, one number an axis"
    )
    slice_axis: Literal[0, 1, 2] | None = Field(
        default=None, description="the axis along which a 2D network goes through the scan slice by slice"
    )
    multiple: PositiveInt | None = Field(
        default=None,
        description="a 2D network takes whole slices of any height and width, padded up to a multiple of this, which "
        "its strides divide; roi_size is then the usual size, and nothing overlaps",
    )
    overlap: Annotated[
        Annotated[Overlap, Tag("one")] | Annotated[tuple[Overlap, ...], Tag("each")], Discriminator(_one_or_each)
    ] = Field(
        default=0.25,
        description="share of the ROI that neighbouring tiles have in common: one number, or one for each axis of "
        "roi_size",
    )
    mode: Literal["constant", "gaussian"] = Field(default="gaussian", description="weights of overlapping tiles")
    sigma_scale: Annotated[
        Annotated[PositiveFloat, Tag("one")] | Annotated[tuple[PositiveFloat, ...], Tag("each")],
        Discriminator(_one_or_each),
    ] = Field(
        default=0.125,
        description="width of the Gaussian as a share of the ROI: one number, or one for each axis of roi_size",
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

    _tuples = field_validator("roi_size", "overlap", "sigma_scale", "mirror_axes", mode="before")(_as_tuple)

    @model_validator(mode="before")
    @classmethod
    def _whole_slices(cls, data: Any) -> Any:
        """A tile that holds a whole slice shares nothing with others: there is nothing to blend."""
        if not isinstance(data, dict) or data.get("multiple") is None:
            return data
        whole = {"overlap": 0.0, "mode": "constant", "sigma_scale": cls.model_fields["sigma_scale"].default}
        other = [key for key, value in whole.items() if data.get(key, value) != value]
        if other:
            raise ValueError(f"with multiple, slices travel whole and nothing overlaps; leave out {', '.join(other)}")
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
        if (len(self.roi_size) == 2) != (self.slice_axis is not None):
            raise ValueError(
                f"a roi_size of two sizes and slice_axis go together, found roi_size {list(self.roi_size)}"
            )
        if any(axis >= len(self.roi_size) for axis in self.mirror_axes):
            raise ValueError(
                f"mirror_axes {list(self.mirror_axes)} names an axis that roi {list(self.roi_size)} has not"
            )
        return self

    def over(self, shape: Sequence[int]) -> Tiling:
        """The tiling of a volume of `shape`, as many axes as roi: one tile that holds it, where sizes are free."""
        if self.multiple is None:
            return self
        return self.model_copy(update={"roi_size": tuple(-(-size // self.multiple) * self.multiple for size in shape)})

    @property
    def overlaps(self) -> tuple[float, ...]:
        """The overlap of each axis of the ROI."""
        return self.overlap if isinstance(self.overlap, tuple) else (self.overlap,) * len(self.roi_size)

    @property
    def sigmas(self) -> tuple[float, ...]:
        """The width of the Gaussian along each axis of the ROI, as a share of its size."""
        return self.sigma_scale if isinstance(self.sigma_scale, tuple) else (self.sigma_scale,) * len(self.roi_size)


class Serving(_Part):
    engines: Annotated[tuple[EngineName, ...], Field(min_length=1)] = Field(
        default=("onnxruntime", "openvino"), description="engines to build: onnxruntime, openvino, tensorrt"
    )
    default_engine: EngineName | None = Field(
        default=None, description="engine behind the public name; left out: the first of engines"
    )
    max_batch_size: PositiveInt = Field(default=4, description="most tiles in one run of the engine")
    preferred_batch_size: tuple[PositiveInt, ...] | None = Field(
        default=None, description="batch sizes that the server waits for; left out: it never waits for a size"
    )
    max_queue_delay_microseconds: NaturalInt = Field(
        default=0, description="how long a tile may wait for others to fill a batch, in microseconds"
    )
    default_timeout_microseconds: NaturalInt = Field(
        default=0,
        description="after how long in the queue a tile is refused, in microseconds; 0: never, and the server then "
        "fetches ahead for a busy engine, which it does with no timeout or priority",
    )
    priority_levels: NaturalInt = Field(
        default=0,
        description="number of priority levels, 1 the highest; 0: every request is alike, and the server fetches ahead",
    )
    gpus: Literal["none", "all"] | tuple[NaturalInt, ...] = Field(
        default="none", description="GPUs that run the model: 'none' (CPU), 'all', or a list of indices"
    )
    count: PositiveInt = Field(default=1, description="copies of the engine, on each GPU or on the CPU")
    threads: NaturalInt = Field(
        default=0, description="CPU threads of one instance; 0: the engine's own choice, all cores"
    )
    warm_up: bool = Field(default=True, description="whether the server runs each batch size once before ready")

    _tuples = field_validator("engines", "preferred_batch_size", "gpus", mode="before")(_as_tuple)

    @model_validator(mode="after")
    def _consistent(self) -> Serving:
        if len(set(self.engines)) < len(self.engines):
            raise ValueError(f"expected every engine once, found {list(self.engines)}")
        if self.default_engine is not None and self.default_engine not in self.engines:
            raise ValueError(
                f"expected default_engine to be one of engines {list(self.engines)}, found {self.default_engine!r}"
            )
        too_large = [size for size in self.preferred_batch_size or () if size > self.max_batch_size]
        if too_large:
            raise ValueError(f"preferred_batch_size {too_large} lie above max_batch_size {self.max_batch_size}")
        if self.gpus == () or (isinstance(self.gpus, tuple) and len(set(self.gpus)) < len(self.gpus)):
            raise ValueError(f"expected gpus to name each GPU once, found {list(self.gpus)}; use 'none' for the CPU")
        return self


class Acceptance(_Part):
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
        return _as_scans(value)


class Precision(_Part):
    openvino: Literal["fp32", "bf16", "int8", "auto"] = Field(
        default="fp32", description="arithmetic of the OpenVINO engine: fp32, bf16, int8 or auto"
    )
    onnxruntime: Literal["fp32", "fp16", "int8", "int8-dynamic", "auto"] = Field(
        default="fp32", description="arithmetic of the ONNX Runtime engine: fp32, fp16, int8, int8-dynamic or auto"
    )
    tensorrt: Literal["fp32", "bf16", "fp16", "int8", "auto"] = Field(
        default="fp32", description="arithmetic of the TensorRT engine: fp32, bf16, fp16, int8 or auto"
    )
    calibration: tuple[tuple[AnyPath, ...], ...] = Field(
        default=(),
        description="scans that reduced precision is calibrated and searched on, relative to the spec (a list of files "
        "a scan where there are several channels); left out: a generated phantom, which the certificate says",
    )

    @field_validator("calibration", mode="before")
    @classmethod
    def _one_file_is_a_scan(cls, value: Any) -> Any:
        return _as_scans(value)

    def of(self, engine: str) -> str:
        """The precision that `engine` is asked for."""
        return str(getattr(self, engine))


class Spec(_Part):
    name: Annotated[str, Field(pattern="^[a-z0-9][a-z0-9_-]*$")] = Field(
        description="public name of the model: small letters, digits, - and _"
    )
    title: str = Field(default="", description="what the model does, in one line for people")
    version: PositiveInt = Field(default=1, description="version folder of the entries")
    network: Network = Field(description="the network: [network] with name and args")
    weights: Weights | None = Field(default=None, description="the weights: [weights] with file and sha256")
    input: Input = Field(description="what the network takes: [input]")
    output: Output = Field(description="what the network gives: [output]")
    tiling: Tiling = Field(description="how a scan is cut and stitched: [tiling]")
    serving: Serving = Field(default=Serving(), description="how the server runs the model: [serving]")
    acceptance: Acceptance = Field(
        default=Acceptance(), description="figures that each engine must reach: [acceptance]"
    )
    precision: Precision = Field(default=Precision(), description="arithmetic of each engine: [precision]")
    nnunet: dict[str, Any] | None = Field(
        default=None, description="what an imported nnU-Net model tells the client; written by the importer"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Spec:
        ending = re.search(rf"_({'|'.join(ENGINE_NAMES)})$", self.name)
        if ending:
            raise ValueError(f"name {self.name!r} must not end in {ending[0]!r}: engines' own entries are called so")
        if self.network.file is not None and self.weights is not None:
            raise ValueError("[weights] belongs to a network by name; network.file holds its own weights")
        if self.tiling.multiple is not None and len(self.tiling.roi_size) != 2:
            raise ValueError(
                f"tiling.multiple is for 2D networks, which see whole slices; {self.network.title} with roi "
                f"{list(self.tiling.roi_size)} is tiled: leave it out"
            )
        channels = len(self.input.channels)
        for key, scans in (
            ("acceptance.scans", self.acceptance.scans),
            ("precision.calibration", self.precision.calibration),
        ):
            for scan in scans:
                if len(scan) != channels:
                    raise ValueError(f"expected {key} with {channels} files a scan, found {len(scan)}")
        return self

    @property
    def whole_scan_intensity(self) -> bool:
        """Whether the graph takes `intensity` [batch, channel, 2]: what to subtract, what to divide by."""
        return self.input.intensity.rule in ("zscore", "percentile")

    @property
    def roi_shape(self) -> tuple[int, ...]:
        """Shape of one tile without the batch: (channel, *spatial)."""
        return (len(self.input.channels), *self.tiling.roi_size)

    @property
    def scores_shape(self) -> tuple[int, ...]:
        """Shape of one tile's scores without the batch: (score, *spatial)."""
        return (self.output.score_count, *self.tiling.roi_size)

    @property
    def spatial_dims(self) -> tuple[int, ...]:
        """The sizes of a tile as an entry declares them: roi, or -1 an axis where they are free."""
        return self.tiling.roi_size if self.tiling.multiple is None else (-1,) * len(self.tiling.roi_size)


def input_names(spec: Spec) -> tuple[str, ...]:
    """Names of the graph's inputs, in order."""
    return ("roi", "intensity") if spec.whole_scan_intensity else ("roi",)


PADDING = {"fp32": -3.4028234663852886e38, "fp16": -65504.0, "int16": -32768.0}
"""The lowest value of each type that travels: it marks a voxel outside the scan."""


def load_spec(path: Path) -> Spec:
    """The spec in the TOML file `path`; file names in it are made absolute.

    Raises SpecError with the file, the key's path, what was expected and found, and what the key means.
    """
    return parse_spec(read_toml(path), str(path), path.resolve().parent)


def read_toml(path: Path) -> dict[str, Any]:
    """The tables in the TOML file `path`. Raises SpecError where it cannot be read or is no TOML."""
    try:
        with path.open("rb") as stream:
            return tomllib.load(stream)
    except OSError as error:
        raise SpecError(f"{path}: cannot be read ({error.strerror}); give the path of a models/NAME.toml") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: not TOML: {error}") from None


def parse_spec(fields: dict[str, Any], where: str, folder: Path) -> Spec:
    """The spec that `fields` hold; `where` names it in errors, relative files are taken from `folder`."""
    try:
        spec = Spec.model_validate(fields)
    except ValidationError as error:
        raise SpecError(explain(error, Spec, where)) from None
    return _with_files_in(spec, folder)


def _with_files_in(spec: Spec, folder: Path) -> Spec:
    def absolute(scans: tuple[tuple[Path, ...], ...]) -> tuple[tuple[Path, ...], ...]:
        return tuple(tuple(folder / file for file in scan) for scan in scans)

    changes: dict[str, Any] = {
        "acceptance": spec.acceptance.model_copy(update={"scans": absolute(spec.acceptance.scans)}),
        "precision": spec.precision.model_copy(update={"calibration": absolute(spec.precision.calibration)}),
    }
    if spec.weights is not None:
        changes["weights"] = spec.weights.model_copy(update={"file": folder / spec.weights.file})
    if spec.network.file is not None:
        changes["network"] = spec.network.model_copy(update={"file": folder / spec.network.file})
    return spec.model_copy(update=changes)
