"""Opens what is given as a teacher: a spec, or a trained nnU-Net folder or zip file. Refuses what cannot teach.

Knows neither engines nor scans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from voxtile_build.errors import SlimmingError
from voxtile_build.importers.network import model_of
from voxtile_build.importers.nnunet.models import CHECKPOINT, models_of
from voxtile_build.importers.nnunet.zipped import is_zip
from voxtile_build.repository.folds import Fold, Model
from voxtile_build.spec.name import nearest_name
from voxtile_build.spec.spec import Spec, check_done, parse_spec, read_toml

UNNAMED = "teacher"
"""The public name of a trained nnU-Net folder until its data set's name is known."""

OF_A_BUNDLE = ("configs", "models")
"""Folders that every MONAI bundle has."""


@dataclass(frozen=True)
class NnunetChoice:
    """Which of the networks of a trained nnU-Net folder teach; see `importers.nnunet.models.models_of`."""

    folds: Sequence[str] | None = None
    checkpoint: str = CHECKPOINT
    configuration: str | None = None
    trainer_keeps_network: bool = False


def teacher_model(source: Path, choice: NnunetChoice) -> Model:
    """The one public model that `source` describes.

    Args:
        source: a spec in TOML, or a trained nnU-Net folder or its zip file.
        choice: for nnU-Net alone.

    Raises:
        SlimmingError: it is something else, or a model that cannot teach; the message says what to give instead.
        BuildError: what a build would say.
    """
    model = _from_nnunet(source, choice) if source.is_dir() or is_zip_of_models(source) else _from_spec(source, choice)
    check_done(model.spec)
    check_can_teach(model.spec, str(source))
    return model


def is_zip_of_models(source: Path) -> bool:
    """Whether it is a zip file by name and content; weights and networks of PyTorch are zip files of other names."""
    return source.suffix.lower() == ".zip" and is_zip(source)


def check_can_teach(spec: Spec, where: str) -> None:
    """Refuse a model whose answers to scans alone cannot teach a student.

    Args:
        spec: the model.
        where: names the source in errors.

    Raises:
        SlimmingError: it is the second stage of a cascade, or gives one score that no other competes with.
    """
    if (spec.nnunet or {}).get("previous_stage"):
        raise SlimmingError(
            f"{where}: expected a teacher that sees scans alone, found the second stage of a cascade, which also sees "
            "the labels of the first; give the configuration of one stage (3d_fullres, 3d_lowres or 2d)"
        )
    if len(spec.output.labels) < 2 and not spec.output.regions:
        raise SlimmingError(
            f"{where}: expected a teacher of at least two labels, or of regions, found the label "
            f"{spec.output.labels[0].name!r} alone, which every voxel has; name the background among output.labels, or "
            "write regions = true in [output] if the score takes a sigmoid"
        )


def _from_spec(source: Path, choice: NnunetChoice) -> Model:
    if source.suffix.lower() != ".toml":
        found = "another file" if source.exists() else "nothing"
        raise SlimmingError(
            f"{source}: expected a spec (.toml), or a trained nnU-Net folder or its zip file, found {found}; for "
            "weights or a network in a file, `voxtile-build init FILE -o SPEC.toml` writes a spec"
        )
    if choice != NnunetChoice():
        raise SlimmingError(
            f"{source}: --folds, --checkpoint, --configuration and --trainer-keeps-network choose among the networks "
            "of a trained nnU-Net folder, and a spec has one; leave them out"
        )
    fields = read_toml(source)
    if "parts" in fields:
        raise SlimmingError(
            f"{source}: expected a teacher of one task, found a set of {len(fields['parts'])} models; make a student "
            "of each: give the folder that its [[parts]] names"
        )
    return model_of(parse_spec(fields, str(source), source.resolve().parent))


def _from_nnunet(source: Path, choice: NnunetChoice) -> Model:
    if all((source / name).is_dir() for name in OF_A_BUNDLE):
        raise SlimmingError(
            f"{source}: expected a spec, or a trained nnU-Net folder, found a MONAI bundle; `voxtile-build bundle "
            f"{source} --name NAME --repository DIR --write-spec SPEC.toml` writes its spec"
        )
    models = models_of(
        source,
        UNNAMED,
        folds=choice.folds,
        checkpoint=choice.checkpoint,
        configuration=choice.configuration,
        trainer_keeps_network=choice.trainer_keeps_network,
    )
    return _named(models[-1], nearest_name(models[-1].spec.title.removeprefix("nnU-Net").strip() or UNNAMED))


def _named(model: Model, name: str) -> Model:
    """The model under the name of its data set."""
    folds = tuple(_named_fold(fold, name) for fold in model.folds)
    return Model(model.spec.model_copy(update={"name": name}), folds)


def _named_fold(fold: Fold, name: str) -> Fold:
    return replace(fold, name=f"{name}{fold.name.removeprefix(UNNAMED)}")
