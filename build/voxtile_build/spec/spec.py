"""The model spec: what models/NAME.toml says, checked. The one place where ROI, labels and rules are written.

Every key has a description; a refused file is answered with the key's path and that description. This module
reads TOML and knows nothing of networks, engines or servers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import tomllib
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from voxtile.transforms.finishing import Finishing, finishing_of
from voxtile.transforms.postprocessing import Postprocessing
from voxtile.transforms.preprocessing import Preprocessing, Spacing
from voxtile_build.errors import SpecError
from voxtile_build.spec.acceptance import Acceptance
from voxtile_build.spec.chains import check_finishing, check_preprocessing, check_values_sent, with_chains
from voxtile_build.spec.distillation import Distillation
from voxtile_build.spec.explain import explain
from voxtile_build.spec.input import Input
from voxtile_build.spec.name import LARGEST_VERSION, checked_name
from voxtile_build.spec.network import Network, Weights
from voxtile_build.spec.output import Output
from voxtile_build.spec.precision import Precision
from voxtile_build.spec.preparation import Preparation, preparation_of
from voxtile_build.spec.serving import Serving
from voxtile_build.spec.table import PositiveInt, Table, from_json
from voxtile_build.spec.tiling import Tiling


class Spec(Table):
    """A model: the whole file. Tables that are left out have their defaults."""

    name: Annotated[str, AfterValidator(checked_name)] = Field(
        description="public name of the model: small letters, digits, - and _"
    )
    title: str = Field(default="", description="what the model does, in one line for people")
    version: Annotated[PositiveInt, Field(le=LARGEST_VERSION)] = Field(
        default=1, description="number of the version that is built; left out: the next one"
    )
    network: Network = Field(description="the network: [network] with name and args")
    weights: Weights | None = Field(default=None, description="the weights: [weights] with file and sha256")
    input: Input = Field(description="what the network takes: [input]")
    preprocessing: Annotated[tuple[Preprocessing, ...], Field(min_length=1)] | None = Field(
        default=None,
        description="steps before the network, in order: a [[preprocessing]] for each, in place of input.orientation, "
        "spacing and intensity",
    )
    output: Output = Field(description="what the network gives: [output]")
    postprocessing: Annotated[tuple[Postprocessing, ...], Field(min_length=1)] | None = Field(
        default=None,
        description="steps after the network, in order: a [[postprocessing]] for each; left out: scores are brought "
        "back to the scan's grid, and decided there",
    )
    tiling: Tiling = Field(serialization_alias="inferer", description="how a scan is cut and stitched")
    serving: Serving = Field(default=Serving(), description="how the server runs the model: [serving]")
    acceptance: Acceptance = Field(default=Acceptance(), description="limits that each engine must keep: [acceptance]")
    precision: Precision = Field(default=Precision(), description="arithmetic of each engine: [precision]")
    distillation: Distillation | None = Field(
        default=None, description="the teacher of a network that was distilled: [distillation]"
    )
    nnunet: Annotated[dict[str, Any] | None, BeforeValidator(from_json)] = Field(
        default=None,
        description="what an imported nnU-Net model tells the client, also as JSON text; written by the importer",
    )
    remarks: tuple[str, ...] = Field(
        default=(),
        description="what was assumed when the model was imported, and not checked: a sentence each, for certificate "
        "and card",
    )
    todo: tuple[str, ...] = Field(
        default=(),
        description="what is still to be checked or filled in, a sentence each; nothing is built while one is left",
    )

    @model_validator(mode="before")
    @classmethod
    def _chains(cls, data: Any) -> Any:
        return with_chains(data) if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _consistent(self) -> Spec:
        if self.network.file is not None and self.weights is not None:
            raise ValueError("[weights] belongs to a network by name; network.file holds its own weights")
        if self.distillation is not None and self.weights is None and self.network.file is None:
            raise ValueError("[distillation] speaks of trained weights: give [weights], or leave it out")
        if self.tiling.multiple is not None and len(self.tiling.roi_size) != 2:
            raise ValueError(
                f"tiling.multiple is for 2D networks, which see whole slices; {self.network.title} with roi_size "
                f"{list(self.tiling.roi_size)} is tiled: leave it out"
            )
        channels = len(self.input.channels)
        check_preprocessing(self.preprocessing or (), self.input)
        self._check_finishing()
        self._check_values()
        check_values_sent(self.preparation, self.input, self.tiling.background_at_most is not None)
        for key, scans in (
            ("acceptance.scans", self.acceptance.scans),
            ("precision.calibration", self.precision.calibration),
        ):
            for scan in scans:
                if len(scan) != channels:
                    raise ValueError(f"expected {key} with {channels} files a scan, found {len(scan)}")
        return self

    def _check_finishing(self) -> None:
        network, output = self.network.output, self.output
        if network == "probabilities" and output.scores == "logits":
            raise ValueError(
                "network.output = 'probabilities' and output.scores = 'logits' contradict each other: leave scores out"
            )
        if self.postprocessing is None:
            return
        try:
            finishing = finishing_of(self.postprocessing)
        except ValueError as error:
            raise ValueError(f"postprocessing: {error}") from None
        if network == "probabilities" and finishing.activation != "none":
            raise ValueError(
                f"network.output = 'probabilities' says that the network ends in {finishing.activation} or the like: "
                "leave Activations out, or network.output"
            )
        resampled = any(isinstance(step, Spacing) for step in self.preprocessing or ())
        check_finishing(finishing, self.postprocessing, output, resampled or self.input.spacing is not None)

    def _check_values(self) -> None:
        """Two labels may have one value where regions are painted, or where the chain says so."""
        values, finishing = [label.value for label in self.output.labels], self.finishing
        if len(set(values)) < len(values) and not self.output.regions and not (finishing and finishing.values):
            names = [label.name for label in self.output.labels]
            raise ValueError(f"expected every label's name and value once, found {names} with values {values}")

    @property
    def preparation(self) -> Preparation:
        """What happens to a scan before the network, by the chain or by the short keys of [input]."""
        if self.preprocessing is None:
            given = self.input
            return Preparation(given.orientation, given.spacing, intensity=given.intensity)
        return preparation_of(self.preprocessing, len(self.input.channels))

    @property
    def finishing(self) -> Finishing | None:
        """What happens to scores after stitching, by the chain; None where there is none."""
        return None if self.postprocessing is None else finishing_of(self.postprocessing)

    @property
    def whole_scan_intensity(self) -> bool:
        """Whether the graph takes the tensor `intensity` [batch, channel, 2]: what to subtract and to divide by."""
        return self.preparation.intensity.rule in ("zscore", "percentile")

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that the spec names: weights or network, the report of a distillation, and scans."""
        report = self.distillation.report if self.distillation else None
        own = [self.network.file, self.weights.file if self.weights else None, report]
        scans = (*self.acceptance.scans, *self.precision.calibration)
        return (*filter(None, own), *(file for scan in scans for file in scan))

    @property
    def notes(self) -> tuple[str, ...]:
        """What was stated when the model was imported, and not checked: a sentence each, for certificate and card."""
        return (*self.remarks, *(self.nnunet or {}).get("notes", ()))

    @property
    def roi_shape(self) -> tuple[int, ...]:
        """Shape of one tile without the batch: (channel, *spatial)."""
        return (len(self.input.channels), *self.tiling.roi_size)

    @property
    def spatial_dims(self) -> tuple[int, ...]:
        """Spatial sizes of a tile as a Triton entry declares them: those of roi_size, or -1 where any size is taken."""
        return self.tiling.roi_size if self.tiling.multiple is None else (-1,) * len(self.tiling.roi_size)


def check_done(spec: Spec) -> None:
    """Refuse a spec that says of itself that something is still to be checked.

    Raises:
        SpecError: a line for each.
    """
    if spec.todo:
        lines = "".join(f"\n  - {sentence}" for sentence in spec.todo)
        raise SpecError(
            f"{spec.name}: todo: nothing is built while the spec says what is still to be done; "
            f"do it, and take the line out of todo:{lines}"
        )


def input_names(spec: Spec) -> tuple[str, ...]:
    """Names of the graph's inputs, in order."""
    return ("roi", "intensity") if spec.whole_scan_intensity else ("roi",)


def load_spec(path: Path) -> Spec:
    """The spec in the TOML file `path`; file names in it are made absolute.

    Raises:
        SpecError: with the file, the key's path, what was expected and found, and what the key means.
    """
    return parse_spec(read_toml(path), str(path), path.resolve().parent)


def read_toml(path: Path) -> dict[str, Any]:
    """The tables in the TOML file `path`.

    Raises:
        SpecError: the file cannot be read, or is not TOML.
    """
    if path.exists() and not path.is_file():  # a pipe that nobody writes to would be waited for
        found = "a folder" if path.is_dir() else "a pipe or a device"
        raise SpecError(f"{path}: expected a plain file, found {found}; give the path of a models/NAME.toml")
    try:
        with path.open("rb") as stream:
            return tomllib.load(stream)
    except OSError as error:
        raise SpecError(f"{path}: cannot be read ({error.strerror}); give the path of a models/NAME.toml") from None
    except (ValueError, RecursionError) as error:  # also bytes that are no UTF-8, and too many brackets
        raise SpecError(
            f"{path}: not TOML: {error}; texts stand in quotes, truth values are true and false, "
            "and a table in a line is { key = value }"
        ) from None


def parse_spec(fields: dict[str, Any], where: str, folder: Path) -> Spec:
    """The spec that `fields` describe.

    Args:
        fields: the tables, as TOML gives them.
        where: names the source in errors.
        folder: where relative file names start.

    Raises:
        SpecError: with the key's path, what was expected and found, and what the key means.
    """
    try:
        spec = Spec.model_validate(fields)
    except ValidationError as error:
        words = {"tiling": "inferer"} if "inferer" in fields and "tiling" not in fields else {}
        raise SpecError(explain(error, Spec, where, words)) from None
    return with_files_in(spec, folder)


def with_files_in(spec: Spec, folder: Path) -> Spec:
    """`spec` with its relative file names taken from `folder`."""

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
    if spec.distillation is not None:
        report = folder / spec.distillation.report
        changes["distillation"] = spec.distillation.model_copy(update={"report": report})
    return spec.model_copy(update=changes)
