"""The repository entries that are measured: each network in several precisions, built by voxtile-build."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from voxtile_build.build import build_models
from voxtile_build.errors import BuildError
from voxtile_build.repository.card import get_card
from voxtile_build.repository.config import read_config
from voxtile_build.repository.entries import entry_name
from voxtile_build.repository.folds import Fold, Model
from voxtile_build.spec.spec import Spec, parse_spec

from .settings import Settings, say

OPEN = {
    **{"max_abs_error": 1e9, "max_logit_error": 1e9, "max_score_error": 0.999, "min_dice": 0.0, "max_changed": 1.0},
    "allow_unseen_labels": True,
}
"""Limits that accept everything: a table shows how far a precision is off, so the build must not refuse it."""
FREE_BATCH_SIZE = 4  # tiles in one request to a network that costs nothing, at most
REDUCED = {"cpu": "bf16", "cuda": "fp16"}
"""The reduced precision of each kind of device."""
LEVELS: Mapping[str, Mapping[str, str]] = {
    "fp32": {"openvino": "fp32", "onnxruntime": "fp32"},
    "bf16": {"openvino": "bf16", "onnxruntime": "fp16"},
    "int8": {"openvino": "int8", "onnxruntime": "int8"},
    "auto": {"openvino": "auto"},
}
"""The precisions of the CPU's engines. Entries of one level share a public name."""
ENGINE_TABLES = {"unet": tuple(LEVELS), "nnunet": tuple(LEVELS), "swinunetr": ("fp32", "bf16", "int8")}
"""The networks that have a table of engines, and its levels. The search for `auto` takes too long for SwinUNETR."""

Changes = Mapping[str, Any]
"""New values of a spec by their keys, such as "input.dtype"."""
Built = dict[str, dict[str, "Entry"]]
"""Entries by public name (or level) and engine. What cannot be built has none; the settings record why."""


@dataclass(frozen=True)
class Entry:
    """A public name and the engine behind it."""

    name: str
    engine: str

    @property
    def engine_entry(self) -> str:
        """The name of the engine's own entry."""
        return entry_name(self.name, self.engine)


def engine_of(device: str) -> str:
    """Returns the engine that serves on a device."""
    return "tensorrt" if device == "cuda" else "openvino"


def engine_levels(key: str, settings: Settings) -> tuple[str, ...]:
    """Returns the levels in this run's table of engines for a network; none if it has no such table.

    A quick run leaves out SwinUNETR and what is calibrated.
    """
    full = ENGINE_TABLES.get(key, ())
    return settings.pick(full, full[:2] if key != "swinunetr" else (), full[:1] if key == "unet" else ())


def changed(spec: Spec, changes: Changes) -> Spec:
    """Returns `spec` with changes, checked again.

    Raises:
        ValueError: the result is no valid spec.
    """
    fields = spec.model_dump()
    for key, value in changes.items():
        *path, last = key.split(".")
        part = fields
        for step in path:
            part = part[step]
        part[last] = value
    return Spec.model_validate(fields)


def build_levels(model: Model, key: str, wanted: Sequence[str], settings: Settings) -> Built:
    """Builds a model at the levels `wanted`, as KEY-LEVEL; those of this run's table of engines are built with them."""
    levels = dict.fromkeys((*wanted, *(engine_levels(key, settings) if "engines" in settings.sections else ())))
    built = build_entries(model, {f"{key}-{level}": _at_level(key, level, settings) for level in levels}, settings)
    return {level: built[f"{key}-{level}"] for level in wanted}


def build_entries(model: Model, variants: Mapping[str, Changes], settings: Settings) -> Built:
    """Builds a model with changes, by their public names, unless that is done already.

    Variants that can share an export are built together.
    """
    fold, models = model.folds[0], []
    for name, changes in variants.items():
        try:
            models.append(Model(changed(model.spec, {"name": name, **changes}), (replace(fold, name=name),)))
        except ValueError as error:
            settings.leave_out(model.spec.name, name, str(error))
    missing = [one for one in models if not (settings.repository / one.spec.name).is_dir()]
    if missing:
        say("building " + ", ".join(f"{one.spec.name} for {' and '.join(one.spec.serving.engines)}" for one in missing))
        started = time.monotonic()
        _build(model.spec.name, missing, settings)
        say(f"built {len(missing)} in {time.monotonic() - started:.0f} s")
    return {name: _entries(name, settings) for name in variants}


def build_network(network: nn.Module, spec: Spec, settings: Settings) -> Entry:
    """Builds a network that no spec can name, such as one that costs nothing."""
    model = Model(spec, (Fold(spec.name, lambda: network, "0" * 64),))
    return build_entries(model, {spec.name: {}}, settings)[spec.name][spec.serving.engines[0]]


class Repeat(nn.Module):
    """A network that costs nothing: it returns its input as several scores."""

    scores = 1

    def forward(self, roi: torch.Tensor) -> torch.Tensor:
        """Returns [batch, score, *spatial] of [batch, 1, *spatial]."""
        return torch.cat([roi] * self.scores, dim=1) if self.scores > 1 else roi * 1.0


def free_entry(
    scores: int, taken: str, given: str, roi: tuple[int, ...], settings: Settings, *, one_mask: bool = False
) -> Entry:
    """Builds a network that costs nothing, with the types `taken` and `given` of ROI and scores on the wire.

    With `one_mask` it returns only the probability of the last class.
    """
    labels = [f"score {index}" for index in range(scores)]
    wanted = {"scores": "foreground", "foreground": labels[-1]} if one_mask else {}
    fields: dict[str, Any] = {
        "name": f"free-{scores}-{taken}-{given}-{roi[0]}",
        "network": {"name": "Identity"},
        "input": {"channels": ["any"], "dtype": taken},
        "output": {"dtype": given, "labels": labels, **wanted},
        "tiling": {"roi_size": list(roi), "overlap": 0.25, "mode": "gaussian"},
        "serving": {"engines": ["openvino"], "max_batch_size": FREE_BATCH_SIZE, "warm_up": False},
        "acceptance": OPEN,
    }
    network = Repeat()
    network.scores = scores
    return build_network(network, parse_spec(fields, "bench", settings.data), settings)


def _at_level(key: str, level: str, settings: Settings) -> Changes:
    engine = engine_of(settings.device)
    words = LEVELS[level] if settings.device == "cpu" else {engine: level}
    # On a CPU, ONNX Runtime's reduced precisions gain nothing for large networks.
    if not engine_levels(key, settings) or (key != "unet" and level != "fp32"):
        words = {engine: words[engine]}
    precisions = {f"precision.{name}": word for name, word in words.items() if word != "fp32"}
    changes = {"serving.engines": tuple(words), "serving.default_engine": engine, **precisions}
    # The search for `auto` needs limits: with open ones it would stop at once.
    return {**changes, "acceptance.min_dice": 0.995, "acceptance.max_changed": 1e-3} if level == "auto" else changes


def _build(where: str, models: Sequence[Model], settings: Settings) -> None:
    """Builds all models at once; if that fails, each by itself, so that only the wrong one is left out."""
    try:
        build_models(models, settings.repository)
    except (BuildError, ValueError) as error:
        if len(models) == 1:
            settings.leave_out(where, models[0].spec.name, str(error))
        for model in models if len(models) > 1 else ():
            _build(where, [model], settings)


def _entries(name: str, settings: Settings) -> dict[str, Entry]:
    """Returns what the repository has under a public name, by engine."""
    folder = settings.repository / name
    certificates = get_card(read_config(folder), folder).certificates if folder.is_dir() else {}
    return {engine: Entry(name, engine) for engine in certificates}
