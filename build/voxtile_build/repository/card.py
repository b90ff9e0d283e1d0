"""The model card: what a client must know of a model, taken from its spec and certificates.

The card's class is the client's, `voxtile.card.Card`. This module fills it in and puts it into config.pbtxt.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from tritonclient.grpc import model_config_pb2 as pb

from voxtile import card
from voxtile.card import SCHEMA_VERSION, Card, parse_card
from voxtile.errors import ModelError
from voxtile.transforms.base import Transform
from voxtile_build.engines import find_engine
from voxtile_build.engines.base import Engine
from voxtile_build.errors import BuildError, RepositoryError
from voxtile_build.repository.entries import entry_name, fold_name, is_mean_step
from voxtile_build.spec.input import PADDING
from voxtile_build.spec.spec import Spec
from voxtile_build.spec.tiling import Tiling

PARAMETER = "card"
NOT_IN_CONTRACT = {"title", "version", "engine", "certificates", "provenance"}
"""Fields that change nothing of what a client sends, or of what it makes of the scores."""


def card_of(spec: Spec, engine: str, certificates: Mapping[str, card.Certificate], provenance: card.Provenance) -> Card:
    """The card of a public entry.

    Args:
        spec: the model.
        engine: the engine that the public name stands for.
        certificates: the certificate of each engine, in short.
        provenance: hashes, versions and terms of use.

    Raises:
        BuildError: the parts do not make a card that a client would take.
    """
    fields = {
        "schema_version": SCHEMA_VERSION,
        "name": spec.name,
        "title": spec.title,
        "version": spec.version,
        "channels": spec.input.channels,
        "orientation": spec.preparation.orientation,
        "spacing": spec.preparation.spacing,
        "preprocessing": _plain(spec.preparation.client),
        "postprocessing": _plain(spec.postprocessing or ()) if _needs_steps(spec) else None,
        # keep_zero concerns the graph alone.
        "intensity": spec.preparation.intensity.model_dump(exclude={"keep_zero"}),
        "roi_size": spec.tiling.roi_size,
        "slice_axis": spec.tiling.slice_axis,
        "multiple": spec.tiling.multiple,
        "input": {"dtype": spec.input.dtype, "padding": PADDING[spec.input.dtype]},
        "output": _output(spec),
        "labels": _labels(spec),
        "regions": spec.output.regions,
        "region_order": _region_order(spec),
        "tiling": _tiling(spec.tiling),
        "mirror_axes": spec.tiling.mirror_axes,
        "background": None if spec.tiling.background_at_most is None else {"at_most": spec.tiling.background_at_most},
        "nnunet": spec.nnunet,
        "engine": engine,
        "certificates": dict(certificates),
        "provenance": provenance,
    }
    try:
        return Card.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "card"
        raise BuildError(f"{spec.name}: the card does not fit its schema at {where}: {first['msg']}") from error


def card_text(content: Card) -> str:
    """The card as JSON, the same bytes for the same card; optional fields that do not apply are left out."""
    fields = content.model_dump()
    if content.version == 1:
        del fields["version"]
    if content.multiple is None:
        del fields["multiple"]
    if content.parts is None:
        del fields["parts"]
    if content.region_order is None:
        del fields["region_order"]
    if content.provenance.student_of is None:
        del fields["provenance"]["student_of"]
    for label in fields["labels"]:
        if label["code"] is None:
            del label["code"]
    if content.output.activation == "none":
        del fields["output"]["activation"]
    if content.tiling.padding_mode == "constant":
        del fields["tiling"]["padding_mode"]
    for key, steps in (("preprocessing", content.preprocessing), ("postprocessing", content.postprocessing)):
        fields[key] = _plain(steps or ())
        if fields[key] is None:
            del fields[key]
    return json.dumps(fields, sort_keys=True, separators=(",", ":"))


def set_card(config: pb.ModelConfig, content: Card) -> None:
    """Put the card into a public config, and point the step of every fold at the engine that the card names.

    The steps of a set are public models, which name their engines themselves.
    """
    for step in config.ensemble_scheduling.step if content.parts is None else ():
        if not is_mean_step(step):
            _point(step, find_engine(content.engine))
    config.parameters[PARAMETER].string_value = card_text(content)


def _point(step: pb.ModelEnsembling.Step, engine: Engine) -> None:
    """Point a step at the entry of another engine, which may have other names of tensors."""
    step.model_name = entry_name(fold_name(step.model_name), engine.name)
    inputs, (scores,) = sorted(step.input_map.values()), step.output_map.values()
    step.ClearField("input_map")
    step.ClearField("output_map")
    for name in inputs:
        step.input_map[engine.tensor_name(name)] = name
    step.output_map[engine.tensor_name("scores")] = scores


def get_card(config: pb.ModelConfig, where: Path) -> Card:
    """The card in a public config.

    Args:
        config: the config.
        where: the entry's folder, for errors.

    Raises:
        RepositoryError: there is no card, or it cannot be read.
    """
    if PARAMETER not in config.parameters:
        raise RepositoryError(f"{where}: expected a public entry with the parameter card, found none; build it again")
    try:
        return parse_card(config.parameters[PARAMETER].string_value, config.name)
    except ModelError as error:
        raise RepositoryError(f"{where}: {error}") from None


def _region_order(spec: Spec) -> tuple[str, ...] | None:
    """The order of painting; none where it is that of the labels, so that clients that know no other read the card."""
    names = tuple(label.name for label in spec.output.labels)
    return None if spec.output.region_order in (None, names) else spec.output.region_order


def same_contract(one: Card, other: Card, unless: Collection[str] = ()) -> bool:
    """Whether a client prepares scans and reads scores alike by both cards, fields that are named left out."""
    excluded = {*NOT_IN_CONTRACT, *unless}
    return one.model_dump(exclude=excluded) == other.model_dump(exclude=excluded)


def _plain(steps: Sequence[Transform]) -> list[dict[str, Any]] | None:
    """Steps as a card has them, without the arguments that have their defaults; None without any."""
    return [{"transform": type(step).__name__, **step.model_dump(exclude_defaults=True)} for step in steps] or None


def _needs_steps(spec: Spec) -> bool:
    """Whether the chain of post-processing does more than the card's other fields say."""
    finishing = spec.finishing
    if finishing is None:
        return False
    probabilities = spec.output.scores != "logits" or finishing.activation == "sigmoid"
    usual = finishing.threshold in (None, 0.5 if probabilities else 0.0)
    return finishing.cleans or finishing.nearest or finishing.decided_first or not usual


def _output(spec: Spec) -> dict[str, Any]:
    output = spec.output
    return {
        "kind": output.scores,
        "activation": output.activation,
        "dtype": output.dtype,
        "scores": output.score_count,
        "scale": output.scale,
    }


def _tiling(tiling: Tiling) -> dict[str, Any]:
    """In the card, numbers for each axis are those of the scan's axes: a 2D network's slices have a third one."""
    fields = tiling.model_dump(mode="json", include={"semantics", "overlap", "padding_mode", "mode", "sigma_scale"})
    for key, unused in (("overlap", 0.0), ("sigma_scale", 1.0)):
        if tiling.slice_axis is not None and isinstance(fields[key], list):
            fields[key].insert(tiling.slice_axis, unused)
    return fields


def _labels(spec: Spec) -> list[dict[str, Any]]:
    """A mask of one class has that class alone."""
    chosen = spec.output.labels
    if spec.output.scores == "foreground":
        chosen = (chosen[spec.output.foreground_index],)
    return [label.model_dump() for label in chosen]
