"""The repository entries that are measured: built by voxtile-build, several variants of each network."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

import voxtile_build
from voxtile_build.build import build_models
from voxtile_build.errors import BuildError
from voxtile_build.importers.nnunet.models import models_of
from voxtile_build.machine import versions
from voxtile_build.repository.card import get_card, set_card
from voxtile_build.repository.config import read_config, write_config
from voxtile_build.repository.entries import entry_name
from voxtile_build.repository.folds import Fold, Model
from voxtile_build.spec.spec import Spec, parse_spec

from .networks import Network
from .settings import Settings, say

OPEN = {"max_abs_error": 1e9, "max_logit_error": 1e9, "min_dice": 0.0, "max_changed": 1.0}
"""Here the figures are the result; what misses them is to be shown, not refused."""
REDUCED = {"cpu": "bf16", "cuda": "fp16"}
"""The reduced precision of each kind of device."""
LEVELS: Mapping[str, Mapping[str, str]] = {
    "fp32": {"openvino": "fp32", "onnxruntime": "fp32"},
    "bf16": {"openvino": "bf16", "onnxruntime": "fp16"},
    "int8": {"openvino": "int8", "onnxruntime": "int8"},
    "auto": {"openvino": "auto"},
}
"""Precisions by the CPU's engines; those of one level have one public name."""
SMALL = "unet"
"""The network for which ONNX Runtime's reduced precisions are measured too: on a CPU they gain large ones nothing."""

Changes = Mapping[tuple[str, ...], Any]
"""New values by their path in a spec."""


@dataclass(frozen=True)
class Entry:
    """A public name, the engine behind it, and the precision that its certificate tells."""

    name: str
    engine: str
    precision: str
    instances: int = 1

    @property
    def engine_entry(self) -> str:
        return entry_name(self.name, self.engine)


def changed(spec: Spec, changes: Changes) -> Spec:
    """`spec` with the keys at the given paths changed, and checked again."""
    fields = spec.model_dump()
    for (*path, last), value in changes.items():
        part = fields
        for step in path:
            part = part[step]
        part[last] = value
    return Spec.model_validate(fields)


def spec_of(network: Network, scan: Path, settings: Settings) -> Spec:
    """The plain spec: fp32 in, fp32 logits out. scan: what the certificate is taken on; one tile is enough here."""
    fields = {
        "name": network.key,
        "title": network.title,
        "network": {"name": network.spec_name, "args": dict(network.args)},
        "weights": {"file": str(network.weights), "sha256": network.sha256},
        "input": {"channels": ["T1"], "dtype": "fp32", "intensity": {"rule": "zscore", "mask": "nonzero"}},
        "output": {"scores": "logits", "labels": list(network.labels)},
        "tiling": {
            "roi_size": list(network.roi),
            "overlap": network.overlap,
            "mode": "gaussian",
            "background_at_most": 0.0,
        },
        "serving": serving_of(network.max_batch_size, settings.device),
        "acceptance": OPEN,
    }
    spec = parse_spec(fields, "bench", settings.data)
    return changed(spec, on_scan(spec, scan))


def on_scan(spec: Spec, scan: Path, calibration: Path | None = None) -> dict[tuple[str, ...], Any]:
    """The changes that take certificate and calibration from `scan`, or from two scans, instead of a phantom."""
    found: dict[tuple[str, ...], Any] = {("acceptance", "scans"): ((scan,),)}
    if "calibration" in spec.model_dump().get("precision", {}):
        found["precision", "calibration"] = ((calibration or scan,),)
    return found


def serving_of(max_batch_size: int, device: str) -> dict[str, Any]:
    engine = engine_of(device)
    serving: dict[str, Any] = {
        "engines": (engine,),
        "default_engine": engine,
        "max_batch_size": max_batch_size,
        "warm_up": False,
    }
    return {**serving, "gpus": "all"} if device == "cuda" else serving


def engine_of(device: str) -> str:
    return "tensorrt" if device == "cuda" else "openvino"


def model_of(network: Network, scan: Path, settings: Settings) -> Model:
    spec = spec_of(network, scan, settings)
    return Model(spec, (Fold(spec.name, network.load),))


def nnunet_model(folder: Path, name: str, settings: Settings) -> Model:
    """The model that voxtile-build reads from a trained nnU-Net folder, its acceptance figures open."""
    model = models_of(folder, name)[0]
    opened: dict[tuple[str, ...], Any] = {("acceptance", key): value for key, value in OPEN.items()}
    opened |= {("serving", key): value for key, value in serving_of(1, settings.device).items()}
    return Model(changed(model.spec, opened), model.folds)


def build_entries(model: Model, variants: Mapping[str, Changes], settings: Settings) -> dict[str, dict[str, Entry]]:
    """Builds `model` with each of the changes under its public name, unless that was done before.

    What can share an export is built in one go. Returns the entries by name and engine; none for a name that cannot be
    built, which is told.
    """
    specs: dict[str, Spec] = {}
    for name, changes in variants.items():
        try:
            specs[name] = changed(model.spec, {("name",): name, **changes})
        except ValueError as error:
            _leave_out(model, name, error, settings)
    return {name: {} for name in variants} | _built_together(model, specs, settings)


def _built_together(model: Model, specs: Mapping[str, Spec], settings: Settings) -> dict[str, dict[str, Entry]]:
    """All in one go; where that fails, each by itself, so that one takes no other with it."""
    fold = model.folds[0]
    models = [Model(spec, (Fold(name, fold.load, fold.weights_sha256),)) for name, spec in specs.items()]
    try:
        return _built(models, settings)
    except (BuildError, ValueError) as error:
        if len(specs) == 1:
            _leave_out(model, next(iter(specs)), error, settings)
            return {}
    alone = [_built_together(model, {name: spec}, settings) for name, spec in specs.items()]
    return {name: entries for made in alone for name, entries in made.items()}


def _leave_out(model: Model, name: str, error: Exception, settings: Settings) -> None:
    settings.leave_out(model.spec.name, name, " ".join(str(error).split())[:300])


def build_entry(model: Model, name: str, changes: Changes, settings: Settings) -> Entry | None:
    """The entry of one variant for the device's engine; None where it cannot be built, which is told."""
    return build_entries(model, {name: changes}, settings)[name].get(engine_of(settings.device))


def build_levels(model: Model, key: str, wanted: Sequence[str], settings: Settings) -> dict[str, dict[str, Entry]]:
    """`model` at the levels `wanted` as `key`-level: entries by level and engine, none where one cannot be built.

    Levels that the table of engines will want in this run are built with them.
    """
    levels = dict.fromkeys((*wanted, *(engine_levels(key, settings) if "engines" in settings.sections else ())))
    names = {f"{key}-{level}": level for level in levels}
    built = build_entries(model, {name: _at_level(key, level, settings) for name, level in names.items()}, settings)
    return {level: built[name] for name, level in names.items() if level in wanted}


def engine_levels(key: str, settings: Settings) -> tuple[str, ...]:
    """Of which the table of engines tells. Quick runs leave out what is calibrated; SwinUNETR is too large to be
    searched for its `auto`."""
    if key not in engine_keys(settings):
        return ()
    if settings.tiny:
        return ("fp32",)
    if settings.quick:
        return ("fp32", "bf16")
    return tuple(level for level in LEVELS if level != "auto" or key != "swinunetr")


def engine_keys(settings: Settings) -> tuple[str, ...]:
    """Networks in the table of engines."""
    return ("unet",) if settings.tiny else ("unet", "nnunet") if settings.quick else ("unet", "nnunet", "swinunetr")


def _at_level(key: str, level: str, settings: Settings) -> Changes:
    engine = engine_of(settings.device)
    words = LEVELS[level] if settings.device == "cpu" else {engine: level}
    if key not in engine_keys(settings) or (key != SMALL and level != "fp32"):
        words = {engine: words[engine]}
    changes: dict[tuple[str, ...], Any] = {
        ("serving", "engines"): tuple(words),
        ("serving", "default_engine"): engine,
        **{("precision", name): word for name, word in words.items() if word != "fp32"},
    }
    if level == "auto":
        # The search needs figures to reach; open ones would make it stop at the first.
        changes |= {("acceptance", "min_dice"): 0.995, ("acceptance", "max_changed"): 1e-3}
    return changes


def build_network(network: nn.Module, spec: Spec, settings: Settings) -> Entry:
    """Builds an unnamed network, such as one that costs nothing."""
    model = Model(spec, (Fold(spec.name, lambda: network, "0" * 64),))
    return _built([model], settings)[spec.name][spec.serving.engines[0]]


def clone(entry: Entry, name: str, instances: int, threads: int, settings: Settings) -> Entry:
    """The same engine files under another name, served by several instances of so many threads each."""
    repository = settings.repository
    for old, new in ((entry.engine_entry, entry_name(name, entry.engine)), (entry.name, name)):
        shutil.rmtree(repository / new, ignore_errors=True)
        shutil.copytree(repository / old, repository / new)
        config = read_config(repository / new)
        config.name = new
        if new == name:
            set_card(config, get_card(config, repository / new).model_copy(update={"name": name}))
            for step in config.ensemble_scheduling.step:
                step.model_name = entry_name(name, entry.engine)
        else:
            config.instance_group[0].count = instances
            config.parameters["INFERENCE_NUM_THREADS"].string_value = str(threads)
        write_config(config, repository / new)
    return Entry(name, entry.engine, entry.precision, instances)


def engine_files(entry: Entry, settings: Settings) -> dict[str, Any]:
    """What a process needs to run an entry's engine itself: the folder of its files and its parameters."""
    folder = settings.repository / entry.engine_entry
    parameters = {key: value.string_value for key, value in read_config(folder).parameters.items()}
    return {"engine": entry.engine, "folder": str(folder / "1"), "parameters": parameters}


def _built(models: Sequence[Model], settings: Settings) -> dict[str, dict[str, Entry]]:
    """Builds where spec, sources or versions have changed since; the entries by name and engine."""
    stamps = {model.spec.name: settings.data / f"{model.spec.name}.stamp" for model in models}
    digests = {model.spec.name: _digest(model) for model in models}

    def stands(name: str) -> bool:
        stamp = stamps[name]
        return stamp.exists() and stamp.read_text() == digests[name] and (settings.repository / name).is_dir()

    missing = [model for model in models if not stands(model.spec.name)]
    if missing:
        named = ", ".join(f"{model.spec.name} for {' and '.join(model.spec.serving.engines)}" for model in missing)
        say(f"building {named}")
        begun = time.monotonic()
        build_models(missing, settings.repository)
        for model in missing:
            stamps[model.spec.name].write_text(digests[model.spec.name])
        say(f"built {len(missing)} in {time.monotonic() - begun:.0f} s")
    return {model.spec.name: _entries(model.spec.name, settings) for model in models}


def _entries(name: str, settings: Settings) -> dict[str, Entry]:
    """What is in the repository under a public name, by engine, with the precision that the certificate tells."""
    card = get_card(read_config(settings.repository / name), settings.repository / name)
    return {engine: Entry(name, engine, one.precision) for engine, one in card.certificates.items()}


def _digest(model: Model) -> str:
    sources = sorted(Path(voxtile_build.__file__).parent.rglob("*.py"))
    text = json.dumps([model.spec.model_dump(mode="json"), versions()], sort_keys=True)
    return hashlib.sha256(text.encode() + b"".join(file.read_bytes() for file in sources)).hexdigest()
