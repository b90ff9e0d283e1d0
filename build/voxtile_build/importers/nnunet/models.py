"""A trained nnU-Net v2 folder as models to build: a spec, and a network for each fold.

The first stage of a cascade becomes a public model of its own, which the client runs before the second. Nothing of
nnunetv2 is imported; its networks come from dynamic_network_architectures. Knows neither engines nor repositories.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from voxtile.chains.nnunet.plan import NnunetModel
from voxtile.errors import ModelError
from voxtile_build.errors import SourceError, WeightsError
from voxtile_build.importers.nnunet.checkpoint import Checkpoint, load_into, read_checkpoints
from voxtile_build.importers.nnunet.folder import ModelFolder, configuration_of, open_folder
from voxtile_build.importers.nnunet.found import unfinished
from voxtile_build.importers.nnunet.labels import Labels, channels_of, labels_of
from voxtile_build.importers.nnunet.network import network_of
from voxtile_build.importers.nnunet.postprocessing import read_steps
from voxtile_build.importers.nnunet.spec import Inference, check_names, plan_of, spec_of
from voxtile_build.importers.nnunet.trainers import check_trainer
from voxtile_build.importers.nnunet.zipped import is_zip, unpacked
from voxtile_build.importers.settings import check_settings, refuse_scans
from voxtile_build.repository.folds import Fold, Model

CHECKPOINT = "checkpoint_final.pth"


def models_of(
    folder: Path,
    name: str,
    *,
    folds: Sequence[str] | None = None,
    checkpoint: str = CHECKPOINT,
    configuration: str | None = None,
    settings: Mapping[str, Any] | None = None,
    trainer_keeps_network: bool = False,
    inference: Inference = Inference(),  # noqa: B008 - frozen
) -> tuple[Model, ...]:
    """The public models of a trained folder, ready to be built.

    Args:
        folder: the trained model, a results folder that holds several, or a zip file of these.
        name: the public name.
        folds: such as ("0", "1") or ("all",). Default: all that have the file `checkpoint`.
        checkpoint: name of the file in each fold.
        configuration: which trained model, where `folder` holds several.
        settings: the tables [serving], [precision] and [acceptance] of a spec.
        trainer_keeps_network: the user's word that a trainer that is not known here builds the plan's network.
        inference: how nnU-Net is to be run.

    Returns:
        One model; of a cascade its two stages in order, the first one with the name NAME_CONFIGURATION.

    Raises:
        BuildError: names the file and what is wrong with it.
    """
    check_settings(settings or {})
    if is_zip(folder):
        with unpacked(folder) as inside:
            models = models_of(
                inside.models,
                name,
                folds=folds,
                checkpoint=checkpoint,
                configuration=configuration,
                settings=settings,
                trainer_keeps_network=trainer_keeps_network,
                inference=inference,
            )
        return tuple(map(inside.later, models))
    opened = open_folder(folder, configuration)
    checkpoints = _checkpoints(opened, folds, checkpoint, configuration)
    notes = check_trainer(checkpoints[0].trainer, str(checkpoints[0].path), keeps_network=trainer_keeps_network)
    stage = opened.configuration(checkpoints[0].configuration).get("previous_stage")
    if not stage:
        return (_model(name, opened, checkpoints, settings or {}, None, notes, inference),)
    refuse_scans(settings or {})
    first = models_of(
        opened.stage(stage).path,
        f"{name}_{stage}",
        folds=folds,
        checkpoint=checkpoint,
        configuration=stage,
        settings=settings,
        trainer_keeps_network=trainer_keeps_network,
        inference=inference,
    )
    return (*first, _model(name, opened, checkpoints, settings or {}, first[-1], notes, inference))


def _checkpoints(
    folder: ModelFolder, folds: Sequence[str] | None, name: str, configuration: str | None
) -> tuple[Checkpoint, ...]:
    """The chosen folds, trained by the folder's own plan."""
    chosen = tuple(dict.fromkeys(fold.removeprefix("fold_") for fold in folds or folder.folds_with(name)))
    if not chosen:
        raise SourceError(f"{folder.path}: expected a trained fold (fold_0/{name}, …), {unfinished(folder.path, name)}")
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
    """Refuse a checkpoint whose own plans differ from plans.json in what it was trained with."""
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


def _check_same_dataset(folder: ModelFolder, checkpoint: Checkpoint, labels: Labels, channels: Sequence[str]) -> None:
    """Refuse a checkpoint whose own dataset.json gives its outputs another meaning; a label may have another name."""
    if not checkpoint.dataset:
        return
    own = labels_of(checkpoint.dataset, str(checkpoint.path))
    different = {
        "the values of labels": (own.values, own.foreground, own.regions)
        != (labels.values, labels.foreground, labels.regions),
        "the order of labels": own.names != labels.names and sorted(own.names) == sorted(labels.names),
        "the number of channels": len(channels_of(checkpoint.dataset, str(checkpoint.path))) != len(channels),
    }
    if any(different.values()):
        raise WeightsError(
            f"{checkpoint.path}: expected a checkpoint of {folder.dataset_file}, found one trained on other data "
            f"(different: {', '.join(what for what, differs in different.items() if differs)}); put the dataset.json "
            "that it was trained with beside it"
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
    notes: Sequence[str],
    inference: Inference,
) -> Model:
    """The public model of one trained configuration."""
    configuration = folder.configuration(checkpoints[0].configuration)
    check_names(folder, configuration)
    labels = labels_of(folder.dataset, str(folder.dataset_file))
    channels = channels_of(folder.dataset, str(folder.dataset_file))
    plan = plan_of(folder, configuration)
    _check_channels(folder, channels, plan)
    for checkpoint in checkpoints:
        _check_same_dataset(folder, checkpoint, labels, channels)
    reader = folder.plans.get("image_reader_writer", "SimpleITKIO")
    nnunet = {
        **plan,
        "configuration": checkpoints[0].configuration,
        "image_reader_writer": reader,
        "trainer": checkpoints[0].trainer,
        "notes": list(notes),
        "preparation": hashlib.sha256(_plain([plan, reader]).encode()).hexdigest(),
        "n_labels": labels.count,
        "regions_class_order": list(labels.values) if labels.regions else None,
        "postprocessing": read_steps(folder.path, [checkpoint.fold for checkpoint in checkpoints]),
        **(_cascade(folder, labels, previous) if previous else {}),
    }
    try:
        NnunetModel.parse(nnunet)  # as the client will
    except ModelError as error:
        raise SourceError(f"{folder.plans_file}: {error}; take the file that nnU-Net wrote") from None
    axes = checkpoints[0].mirror_axes if inference.mirroring else ()
    spec = spec_of(name, folder, configuration, channels, labels, axes, nnunet, settings, inference.tile_step_size)
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
    """What the client of the second stage must know of the first: its name, and which labels become channels."""
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
