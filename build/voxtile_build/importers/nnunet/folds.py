"""A trained nnU-Net v2 folder to entries: one an engine and fold, averaged behind one public name.

A cascade's second stage brings its first with it, as a public model of its own that the client runs before.
Nothing of nnunetv2 is imported; its networks come from dynamic_network_architectures.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from voxtile_build.build import Published, build_models
from voxtile_build.errors import SourceError, WeightsError
from voxtile_build.importers.nnunet.checkpoint import Checkpoint, load_into, read_checkpoints
from voxtile_build.importers.nnunet.folder import ModelFolder, configuration_of, open_folder
from voxtile_build.importers.nnunet.labels import Labels, channels_of, labels_of
from voxtile_build.importers.nnunet.network import network_of
from voxtile_build.importers.nnunet.postprocessing import read_steps
from voxtile_build.importers.nnunet.spec import check_names, check_settings, plan_of, refuse_scans, spec_of
from voxtile_build.prepared import Step, silent
from voxtile_build.repository.folds import Fold, Model

CHECKPOINT = "checkpoint_final.pth"


def import_nnunet(
    folder: Path,
    name: str,
    repository: Path,
    *,
    folds: Sequence[str] | None = None,
    checkpoint: str = CHECKPOINT,
    configuration: str | None = None,
    engines: Sequence[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    step: Step = silent,
) -> tuple[Published, ...]:
    """Publish the trained model in `folder` as `name`; of a cascade the first stage too, as NAME_CONFIGURATION.

    folds: such as ("0", "1") or ("all",); left out: all that have the file `checkpoint`. configuration: which
    trained model, where `folder` holds several. settings: the sections [serving], [precision] and [acceptance] of a
    spec. The public entry of `name` comes last. Raises a BuildError that names the file and what is wrong with it; then
    `repository` is as it was.
    """
    models = models_of(folder, name, folds=folds, checkpoint=checkpoint, configuration=configuration, settings=settings)
    return build_models(models, repository, engines=engines, step=step)


def models_of(
    folder: Path,
    name: str,
    *,
    folds: Sequence[str] | None = None,
    checkpoint: str = CHECKPOINT,
    configuration: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> tuple[Model, ...]:
    """The public models of a trained folder, ready to be built: one, or a cascade's two stages in order."""
    check_settings(settings or {})
    opened = open_folder(folder, configuration)
    checkpoints = _checkpoints(opened, folds, checkpoint, configuration)
    stage = opened.configuration(checkpoints[0].configuration).get("previous_stage")
    if not stage:
        return (_model(name, opened, checkpoints, settings or {}, None),)
    refuse_scans(settings or {})
    place = opened.stage(stage).path
    first = models_of(place, f"{name}_{stage}", folds=folds, checkpoint=checkpoint, settings=settings)
    return (*first, _model(name, opened, checkpoints, settings or {}, first[-1]))


def _checkpoints(
    folder: ModelFolder, folds: Sequence[str] | None, name: str, configuration: str | None
) -> tuple[Checkpoint, ...]:
    """The chosen folds, trained by the folder's own plan."""
    chosen = tuple(dict.fromkeys(folds or folder.folds_with(name)))
    if not chosen:
        raise SourceError(f"{folder.path}: expected a trained fold (fold_0/{name}, …), found none")
    found = read_checkpoints(folder.path, chosen, name)
    if configuration not in (None, found[0].configuration):
        raise SourceError(
            f"{found[0].path}: expected configuration {configuration!r}, found one trained as "
            f"{found[0].configuration!r}; leave --configuration out, or give the other folder"
        )
    for checkpoint in found:
        _check_same_plan(folder, checkpoint)
    return found


def _check_same_plan(folder: ModelFolder, checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint whose own plans say other than plans.json about what it was trained with."""
    if not checkpoint.plans:
        return
    own = configuration_of(checkpoint.plans, checkpoint.configuration, str(checkpoint.path))
    trained = ModelFolder(checkpoint.path, folder.dataset, checkpoint.plans)
    given = folder.configuration(checkpoint.configuration)
    theirs = {**plan_of(trained, own), "architecture": own["architecture"]}
    ours = {**plan_of(folder, given), "architecture": given["architecture"]}
    different = [key for key in ours if _plain(ours[key]) != _plain(theirs[key])]
    if different:
        raise WeightsError(
            f"{checkpoint.path}: expected a checkpoint of {folder.plans_file}, found one trained with another plan "
            f"(different: {', '.join(different)}); put the plans.json that it was trained with beside it"
        )


def _plain(value: Any) -> str:
    """Equal for equal JSON; NumPy's numbers count as numbers."""
    return json.dumps(value, sort_keys=True, default=float)


def _model(
    name: str,
    folder: ModelFolder,
    checkpoints: Sequence[Checkpoint],
    settings: Mapping[str, Any],
    previous: Model | None,
) -> Model:
    """The public model of one trained configuration."""
    configuration = folder.configuration(checkpoints[0].configuration)
    check_names(folder, configuration)
    labels = labels_of(folder.dataset, str(folder.dataset_file))
    channels = channels_of(folder.dataset, str(folder.dataset_file))
    plan = plan_of(folder, configuration)
    _check_channels(folder, channels, plan)
    reader = folder.plans.get("image_reader_writer", "SimpleITKIO")
    nnunet = {
        **plan,
        "configuration": checkpoints[0].configuration,
        "image_reader_writer": reader,
        "preparation": hashlib.sha256(_plain([plan, reader]).encode()).hexdigest(),
        "n_labels": labels.count,
        "regions_class_order": list(labels.values) if labels.regions else None,
        "postprocessing": read_steps(folder.path, [checkpoint.fold for checkpoint in checkpoints]),
        **(_cascade(folder, labels, previous) if previous else {}),
    }
    axes = checkpoints[0].mirror_axes
    spec = spec_of(name, folder, configuration, channels, labels, axes, nnunet, settings)
    where = f"{folder.plans_file}: configuration {checkpoints[0].configuration}"
    inputs = len(spec.input.channels)
    folds = [
        Fold(
            name if len(checkpoints) == 1 else f"{name}_fold_{checkpoint.fold}",
            partial(_load, configuration, inputs, len(labels.names), where, checkpoint),
            checkpoint.sha256,
        )
        for checkpoint in checkpoints
    ]
    return Model(spec, tuple(folds))


def _load(configuration: Mapping[str, Any], channels: int, heads: int, where: str, checkpoint: Checkpoint) -> nn.Module:
    return load_into(network_of(configuration, channels, heads, where), checkpoint)


def _cascade(folder: ModelFolder, labels: Labels, previous: Model) -> dict[str, Any]:
    """What the second stage's client has to know of the first: its public name and the labels that come as channels."""
    first = (previous.spec.nnunet or {})["n_labels"]
    if first != labels.count:
        raise SourceError(
            f"{folder.dataset_file}: expected the labels of the first stage, {first} with background, "
            f"found {labels.count}; both stages are trained on one data set"
        )
    return {
        "previous_stage": previous.spec.name,
        "foreground_labels": list(labels.foreground),
        "label_channels": [f"previous stage: {value}" for value in labels.foreground],
    }


def _check_channels(folder: ModelFolder, channels: Sequence[str], plan: Mapping[str, Any]) -> None:
    schemes = len(plan["normalization_schemes"])
    if schemes != len(channels):
        raise SourceError(
            f"{folder.dataset_file}: expected one channel for each of the plan's {schemes} normalization_schemes, "
            f"found {len(channels)} ({', '.join(channels)}); dataset.json and plans.json do not belong together"
        )
