"""The public entry of a set: several public models that make one mask together, each of which stays public itself.

Triton sees an ensemble of them, so that a set is ready when all of them are. The client gives each its own tiles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from tritonclient.grpc import model_config_pb2 as pb

from voxtile.card import SCHEMA_VERSION, Card, CleaningStep, Crop, Label, PartModel, Parts, Provenance
from voxtile_build.errors import SpecError
from voxtile_build.repository.card import PARAMETER, card_text
from voxtile_build.repository.config import PLACEHOLDER, read_config, write_config
from voxtile_build.repository.folds import aggregate, aggregate_sha256


@dataclass(frozen=True)
class ModelSet:
    """A set that is to be published.

    Attributes:
        name: its public name.
        title: what it does, for people.
        labels: of the mask, background first.
        parts: the public name of each model, in the order of painting, and what its labels are in the mask.
        spacing: millimetres between voxels of the common grid, whose axes are RAS; None for the scan's own.
        order: of the splines that bring a scan there.
        cleaning: what is done to the mask there.
        crop: where in a scan the models look.
    """

    name: str
    title: str
    labels: tuple[Label, ...]
    parts: tuple[tuple[str, Mapping[int, int]], ...]
    spacing: tuple[float, float, float] | None
    order: int
    cleaning: tuple[CleaningStep, ...] = ()
    crop: Crop | None = None


def write_set(one: ModelSet, cards: Mapping[str, Card], staged: Path) -> Card:
    """Write the public entry of a set under `staged`, where its models are already; returns its card.

    Args:
        one: the set.
        cards: of its models, by their names.
        staged: the folder of all entries.

    Raises:
        SpecError: no engine was built for all of its models.
    """
    models = [cards[name] for name, _ in one.parts]
    card = _card(one, models)
    folder = staged / one.name
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "README").write_text(PLACEHOLDER, encoding="utf-8")
    write_config(_config(card, [read_config(staged / model.name) for model in models]), folder)
    return card


def set_names(config: pb.ModelConfig) -> tuple[str, ...]:
    """The models of the set of a public config, in order; none where it is no set."""
    steps = [step.model_name for step in config.ensemble_scheduling.step]
    return tuple(steps) if any(tensor.name == _roi(0) for tensor in config.input) else ()


def _card(one: ModelSet, models: Sequence[Card]) -> Card:
    first = models[0]
    engines = [engine for engine in first.certificates if all(engine in model.certificates for model in models)]
    if not engines:
        raise SpecError(f"{one.name}: expected an engine that all parts were built for, found none; choose --engines")
    parts = [
        PartModel(model=model.name, weights_sha256=model.provenance.weights_sha256, labels=dict(labels))
        for model, (_, labels) in zip(models, one.parts, strict=True)
    ]
    fields = {
        "schema_version": SCHEMA_VERSION,
        "name": one.name,
        "title": one.title,
        "channels": first.input_channels,
        "orientation": "RAS",
        "spacing": one.spacing,
        "intensity": {"rule": "none"},
        "roi_size": first.roi_size,
        "slice_axis": first.slice_axis,
        "input": first.input,
        "output": {"kind": "labels", "dtype": first.output.dtype, "scores": 1},
        "labels": one.labels,
        "tiling": first.tiling,
        "parts": Parts(models=tuple(parts), order=one.order, cleaning=one.cleaning, crop=one.crop),
        "engine": first.engine if first.engine in engines else engines[0],
        "certificates": {engine: aggregate([model.certificates[engine] for model in models]) for engine in engines},
        "provenance": _provenance(models),
    }
    try:
        return Card.model_validate(fields)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"])) or "card"
        raise SpecError(f"{one.name}: the card does not fit its schema at {where}: {fault['msg']}") from None


def _provenance(models: Sequence[Card]) -> Provenance:
    found = [model.provenance for model in models]
    return Provenance(
        network=", ".join(dict.fromkeys(one.network for one in found)),
        weights_sha256=aggregate_sha256([one.weights_sha256 for one in found]),
        onnx_sha256=aggregate_sha256([one.onnx_sha256 for one in found]),
        source="; ".join(dict.fromkeys(one.source for one in found if one.source)),
        licence="; ".join(dict.fromkeys(one.licence for one in found if one.licence)),
        versions=found[0].versions,
    )


def _config(card: Card, models: Sequence[pb.ModelConfig]) -> pb.ModelConfig:
    """An ensemble that gives tensors of their own to each of the models."""
    batch = min(model.max_batch_size for model in models)
    config = pb.ModelConfig(name=card.name, platform="ensemble", max_batch_size=batch)
    config.version_policy.specific.versions.append(1)
    for number, model in enumerate(models):
        roi, scores = _roi(number), f"scores_{number}"
        config.input.add(name=roi, data_type=model.input[0].data_type, dims=model.input[0].dims)
        config.output.add(name=scores, data_type=model.output[0].data_type, dims=model.output[0].dims)
        step = config.ensemble_scheduling.step.add(model_name=model.name, model_version=-1)
        step.input_map["roi"] = roi
        step.output_map["scores"] = scores
    config.parameters[PARAMETER].string_value = card_text(card)
    return config


def _roi(number: int) -> str:
    return f"roi_{number}"
