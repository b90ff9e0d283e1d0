"""Reads the file that makes one set of several trained nnU-Net models, such as those of TotalSegmentator.

Each part becomes a public model of its own, and the set names them. Knows neither engines nor servers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from voxtile.card import CleaningStep, Crop, Label, PositiveFloats
from voxtile_build.errors import SourceError, SpecError
from voxtile_build.importers.nnunet.models import CHECKPOINT, models_of
from voxtile_build.importers.nnunet.spec import Inference
from voxtile_build.importers.settings import refuse_scans
from voxtile_build.repository.card import get_card
from voxtile_build.repository.config import read_config
from voxtile_build.repository.folds import Model
from voxtile_build.repository.model_set import ModelSet
from voxtile_build.spec.explain import explain
from voxtile_build.spec.name import ALLOWED, checked_name
from voxtile_build.spec.spec import read_toml
from voxtile_build.spec.table import AnyPath, NaturalInt, PositiveFloat, Table

BACKGROUND = Label(name="background", value=0)
MOST = 65535
SHOWN = 8
"""Names in a message at most."""
Names = Annotated[tuple[str, ...], Field(min_length=1)]


class Part(Table):
    """One trained model: [[parts]]."""

    folder: AnyPath = Field(description="trained model, its results folder or its zip file, relative to this file")
    name: str | None = Field(default=None, description="its public name is SET_NAME; left out: part_1, part_2, …")
    folds: tuple[str | int, ...] | None = Field(default=None, description="folds to average; left out: all")
    checkpoint: str = Field(default=CHECKPOINT, description="file in each fold")
    configuration: str | None = Field(default=None, description="such as 3d_fullres, where the folder holds several")
    labels: dict[str, str] | None = Field(
        default=None,
        description="name in the mask for each label value of the part; a value that is left out is not painted. "
        "Without this table: all, by the names in dataset.json",
    )


class Cleaning(Table):
    """What is done to the mask on the common grid: [[cleaning]]."""

    keep_largest: Names | None = Field(default=None, description="labels of which the largest component alone stays")
    remove_small: Names | None = Field(default=None, description="labels whose components up to volume_mm3 go")
    volume_mm3: PositiveFloat | None = Field(default=None, description="volume in mm³, for remove_small")

    @model_validator(mode="after")
    def _one(self) -> Cleaning:
        if (self.keep_largest is None) == (self.remove_small is None):
            raise ValueError("expected either keep_largest or remove_small")
        if (self.remove_small is None) != (self.volume_mm3 is None):
            raise ValueError("expected volume_mm3 with remove_small, and not with keep_largest")
        return self


class CropTable(Table):
    """Where in a scan the parts look: [crop]."""

    model: str = Field(description="public name of the model that finds it, in the same repository")
    labels: Names = Field(description="its labels that are looked for")
    margin_mm: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        default=20.0, description="millimetres around them"
    )


class SetFile(Table):
    """The whole file."""

    title: str = Field(default="", description="what the set does, in one line for people")
    spacing: PositiveFloats | None = Field(
        default=None, description="millimetres between voxels of the common grid, one number or three along R, A, S"
    )
    order: Annotated[int, Field(ge=0, le=5)] = Field(default=1, description="order of the splines that resample a scan")
    tile_step_size: Annotated[float, Field(gt=0, le=1)] = Field(default=0.5, description="nnU-Net's tile_step_size")
    mirroring: bool = Field(default=False, description="whether models mirror as their checkpoints allow")
    labels: dict[str, NaturalInt] | None = Field(
        default=None, description="value in the mask for each name; left out: counted from 1 in the order of the parts"
    )
    parts: Annotated[tuple[Part, ...], Field(min_length=1)] = Field(description="the trained models: [[parts]]")
    cleaning: tuple[Cleaning, ...] = Field(default=(), description="what is done to the mask: [[cleaning]]")
    crop: CropTable | None = Field(default=None, description="where in a scan the parts look: [crop]")


@dataclass(frozen=True)
class PartSet:
    """What a set is built of: the public models in order, cascades with their first stages, and the set itself."""

    models: tuple[Model, ...]
    model_set: ModelSet


def part_set_of(
    file: Path,
    name: str,
    repository: Path,
    *,
    settings: Mapping[str, Any] | None = None,
    trainer_keeps_network: bool = False,
) -> PartSet:
    """The set that a file describes.

    Args:
        file: the TOML file.
        name: the public name of the set.
        repository: where a model that crops is looked up.
        settings: the tables [serving], [precision] and [acceptance] of a spec, for all parts.
        trainer_keeps_network: the user's word for trainers that are not known here.

    Raises:
        BuildError: names the file, the key, and what is wrong.
    """
    content = _read(file, name)
    refuse_scans(settings or {})
    models: list[Model] = []
    named: list[tuple[str, dict[int, str]]] = []
    for number, part in enumerate(content.parts):
        models += models_of(
            file.parent / part.folder.expanduser(),
            _part_name(name, part, number, file),
            folds=None if part.folds is None else [str(fold) for fold in part.folds],
            checkpoint=part.checkpoint,
            configuration=part.configuration,
            settings=settings,
            trainer_keeps_network=trainer_keeps_network,
            inference=Inference(content.tile_step_size, content.mirroring),
        )
        _check_channels(models[0], models[-1], file)
        named.append((models[-1].spec.name, _named(models[-1], part, f"{file}: parts[{number}]")))
    values = _values(content, [names for _, names in named], file)
    model_set = ModelSet(
        name=name,
        title=content.title,
        labels=(BACKGROUND, *(Label(name=label, value=value) for label, value in values.items())),
        parts=tuple((model, {label: values[one] for label, one in names.items()}) for model, names in named),
        spacing=_three(content.spacing),
        order=content.order,
        cleaning=tuple(
            _cleaning(step, values, f"{file}: cleaning[{number}]") for number, step in enumerate(content.cleaning)
        ),
        crop=_crop(content.crop, repository, file),
    )
    return PartSet(tuple(models), model_set)


def _check_channels(first: Model, other: Model, file: Path) -> None:
    """Refuse parts that do not take the same files; what the channels are called does not matter."""
    found = [_channels(model) for model in (first, other)]
    if len(found[0]) != len(found[1]):
        raise SourceError(
            f"{file}: expected parts that take the same scans, found {first.spec.name} with the channels "
            f"{', '.join(found[0])} and {other.spec.name} with {', '.join(found[1])}"
        )


def _channels(model: Model) -> tuple[str, ...]:
    """The images that a model takes; a cascade makes further channels itself."""
    channels = model.spec.input.channels
    return channels[: len(channels) - len((model.spec.nnunet or {}).get("label_channels", ()))]


def _read(file: Path, name: str) -> SetFile:
    try:
        checked_name(name)
    except ValueError as error:
        raise SpecError(f"{file}: name: {error}") from None
    try:
        return SetFile.model_validate(read_toml(file))
    except ValidationError as error:
        raise SpecError(explain(error, SetFile, str(file))) from None


def _three(spacing: float | tuple[float, float, float] | None) -> tuple[float, float, float] | None:
    return spacing if spacing is None or isinstance(spacing, tuple) else (spacing, spacing, spacing)


def _part_name(name: str, part: Part, number: int, file: Path) -> str:
    chosen = f"part_{number + 1}" if part.name is None else part.name
    if not ALLOWED.fullmatch(chosen):
        raise SpecError(f"{file}: parts[{number}].name: expected small letters, digits, - and _, found {chosen!r}")
    return f"{name}_{chosen}"


def _named(model: Model, part: Part, where: str) -> dict[int, str]:
    """What each label value of a part is called in the mask."""
    own: dict[int, str] = {}
    for label in model.spec.output.labels:
        if label.value and own.setdefault(label.value, label.name) != label.name and part.labels is None:
            raise SourceError(
                f"{where}: two regions have the value {label.value} ({own[label.value]}, {label.name}); say in labels "
                "what it is in the mask"
            )
    if part.labels is None:
        return own
    for text in part.labels:
        if not text.isdecimal() or int(text) not in own:
            raise SourceError(
                f"{where}.labels: expected label values of the part ({_listed(map(str, own))}), found {text!r}"
            )
    if not part.labels:
        raise SourceError(f"{where}.labels: expected at least one label, found none; leave the key out for all")
    return {int(text): name for text, name in part.labels.items()}


def _values(content: SetFile, parts: Sequence[Mapping[int, str]], file: Path) -> dict[str, int]:
    """The value of each name in the mask."""
    painted = list(dict.fromkeys(name for names in parts for name in names.values()))
    if content.labels is None:
        return {name: number + 1 for number, name in enumerate(painted)}
    values = {name: value for name, value in content.labels.items() if (name, value) != ("background", 0)}
    for name in painted:
        if name not in values:
            raise SpecError(f"{file}: labels: expected a value for {name!r}, found none{_nearest(name, values)}")
    for name, value in values.items():
        if name not in painted:
            raise SpecError(f"{file}: labels: {name!r} is painted by no part{_nearest(name, painted)}")
        if not 0 < value <= MOST:
            raise SpecError(f"{file}: labels: expected {name!r} from 1 to {MOST}, found {value}")
    if len(set(values.values())) < len(values):
        raise SpecError(f"{file}: labels: expected a value of its own for each name, found one twice")
    return values


def _cleaning(step: Cleaning, values: Mapping[str, int], where: str) -> CleaningStep:
    chosen = step.keep_largest or step.remove_small or ()
    return CleaningStep(labels=_found(chosen, values, where), at_most_mm3=step.volume_mm3)


def _crop(table: CropTable | None, repository: Path, file: Path) -> Crop | None:
    if table is None:
        return None
    folder = repository / table.model
    known = {label.name: label.value for label in get_card(read_config(folder), folder).labels if label.value}
    labels = _found(table.labels, known, f"{file}: crop.labels")
    return Crop(model=table.model, labels=labels, margin_mm=table.margin_mm)


def _found(names: Sequence[str], values: Mapping[str, int], where: str) -> tuple[int, ...]:
    for name in names:
        if name not in values:
            raise SpecError(f"{where}: expected labels among {_listed(values)}, found {name!r}{_nearest(name, values)}")
    return tuple(values[name] for name in names)


def _nearest(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, list(known), 1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _listed(names: Iterable[str]) -> str:
    found = list(names)
    more = len(found) - SHOWN
    return ", ".join(found[:SHOWN]) + (f" and {more} more" if more > 0 else "")
