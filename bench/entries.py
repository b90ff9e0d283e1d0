"""The repository entries that are measured: built by voxtile-build, several variants of each network."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from torch import nn

import voxtile_build
from voxtile_build.builder import build_models
from voxtile_build.errors import BuildError
from voxtile_build.importers.nnunet import models_of
from voxtile_build.machine import versions
from voxtile_build.members import Member, Model
from voxtile_build.repository import entry_name, get_card, read_config, set_card, write_config
from voxtile_build.spec import Spec, parse_spec

from .networks import Network
from .settings import Settings, say

OPEN = {"max_abs_error": 1e9, "max_logit_error": 1e9, "min_dice": 0.0, "max_flipped": 1.0}
"""Here the figures are the result; what misses them is to be shown, not refused."""
REDUCED = {"cpu": "bf16", "cuda": "fp16"}
"""The reduced precision of each kind of device."""
LEVELS: Mapping[str, Mapping[str, str]] = {
    "fp32": {"openvino": "fp32", "onnxruntime": "fp32"},
    "bf16": {"openvino": "bf16", "onnxruntime": "fp16"},
    "int8": {"openvino": "int8", "onnxruntime": "int8"},
    "auto": {"openvino": "auto"},
}
"""Precisions by the CPU's engines; those of one level are built in one go, under one public name."""


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


def precision_choices(engine: str) -> tuple[str, ...]:
    """The precisions that this voxtile-build offers for `engine`; none where its spec says nothing of precision."""
    field = Spec.model_fields.get("precision")
    part = field.annotation if field is not None else None
    if not (isinstance(part, type) and issubclass(part, BaseModel)) or engine not in part.model_fields:
        return ()
    return tuple(word for word in get_args(part.model_fields[engine].annotation) if isinstance(word, str))


def changed(spec: Spec, changes: Mapping[tuple[str, ...], Any]) -> Spec:
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
        "tiling": {"roi": list(network.roi), "overlap": network.overlap, "blend": "gaussian", "empty_at_most": 0.0},
        "serving": serving_of(network.max_batch, settings.device),
        "acceptance": OPEN,
    }
    spec = parse_spec(fields, "bench", settings.data)
    return changed(spec, on_scan(spec, scan))


def on_scan(spec: Spec, scan: Path) -> dict[tuple[str, ...], Any]:
    """The changes that take certificate and calibration from `scan` instead of a phantom."""
    found: dict[tuple[str, ...], Any] = {("acceptance", "scans"): ((scan,),)}
    if "calibration" in spec.model_dump().get("precision", {}):
        found["precision", "calibration"] = ((scan,),)
    return found


def serving_of(max_batch: int, device: str) -> dict[str, Any]:
    engine = engine_of(device)
    serving: dict[str, Any] = {"engines": (engine,), "point": engine, "max_batch": max_batch, "warm_up": False}
    return {**serving, "gpus": "all"} if device == "cuda" else serving


def engine_of(device: str) -> str:
    return "tensorrt" if device == "cuda" else "openvino"


def model_of(network: Network, scan: Path, settings: Settings) -> Model:
    spec = spec_of(network, scan, settings)
    return Model(spec, (Member(spec.name, network.load),))


def nnunet_model(folder: Path, name: str, settings: Settings) -> Model:
    """The model that voxtile-build reads from a trained nnU-Net folder, its acceptance figures open."""
    model = models_of(folder, name)[0]
    opened: dict[tuple[str, ...], Any] = {("acceptance", key): value for key, value in OPEN.items()}
    opened |= {("serving", key): value for key, value in serving_of(1, settings.device).items()}
    return Model(changed(model.spec, opened), model.members)


def build_entry(
    model: Model, name: str, changes: Mapping[tuple[str, ...], Any], settings: Settings, engine: str | None = None
) -> Entry | None:
    """Builds `model` as `name`, unless that was done before; None where it cannot be built, which is told."""
    engine = engine or engine_of(settings.device)
    return next(iter(build_entries(model, name, changes, settings, (engine,))), None)


def build_entries(
    model: Model, name: str, changes: Mapping[tuple[str, ...], Any], settings: Settings, engines: tuple[str, ...]
) -> list[Entry]:
    """The same for several engines in one go, which share the export; none where one of them cannot be built."""
    wanted = {("name",): name, ("serving", "engines"): engines, ("serving", "point"): engines[0], **changes}
    try:
        spec = changed(model.spec, wanted)
        members = tuple(Member(name, member.load, member.weights_sha256) for member in model.members[:1])
        precisions = _built(Model(spec, members), settings)
    except (BuildError, ValueError) as error:
        settings.leave_out(model.spec.name, name, " ".join(str(error).split())[:300])
        return []
    return [Entry(name, engine, precisions[engine]) for engine in engines]


def build_level(model: Model, key: str, level: str, settings: Settings) -> dict[str, Entry]:
    """`model` at a level of `LEVELS`, as `key`-`level`: the entries by engine; none where it cannot be built."""
    words = LEVELS[level]
    changes: dict[tuple[str, ...], Any] = {
        ("precision", engine): word for engine, word in words.items() if word != "fp32"
    }
    if level == "auto":
        # The search needs figures to reach; open ones would make it stop at the first.
        changes |= {("acceptance", "min_dice"): 0.995, ("acceptance", "max_flipped"): 1e-3}
    made = build_entries(model, f"{key}-{level}", changes, settings, tuple(words))
    return {entry.engine: entry for entry in made}


def level_entry(model: Model, key: str, level: str, settings: Settings) -> Entry | None:
    """The entry that serves `model` at this level; on a CPU one of those that the table of engines measures too."""
    engine = model.spec.serving.engines[0]
    if settings.device == "cpu":
        return build_level(model, key, level, settings).get(engine)
    return build_entry(model, f"{key}-{level}", {} if level == "fp32" else {("precision", engine): level}, settings)


def build_network(network: nn.Module, spec: Spec, settings: Settings) -> Entry:
    """Builds an unnamed network, such as one that costs nothing."""
    engine = spec.serving.engines[0]
    precisions = _built(Model(spec, (Member(spec.name, lambda: network, "0" * 64),)), settings)
    return Entry(spec.name, engine, precisions[engine])


def clone(entry: Entry, name: str, instances: int, threads: int, settings: Settings) -> Entry:
    """The same engine files under another name, served by several instances of so many threads each."""
    repository = settings.repository
    for old, new in ((entry.engine_entry, entry_name(name, entry.engine)), (entry.name, name)):
        shutil.rmtree(repository / new, ignore_errors=True)
        shutil.copytree(repository / old, repository / new)
        config = read_config(repository / new)
        config.name = new
        if new == name:
            set_card(config, {**get_card(config, repository / new), "name": name})
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


def _built(model: Model, settings: Settings) -> dict[str, str]:
    """Builds where spec, sources or versions have changed since; the precision of each engine by its certificate."""
    name, stamp = model.spec.name, settings.data / f"{model.spec.name}.stamp"
    digest = _digest(model)
    if not (stamp.exists() and stamp.read_text() == digest and (settings.repository / name).is_dir()):
        say(f"building {name} for {' and '.join(model.spec.serving.engines)}")
        begun = time.monotonic()
        build_models([model], settings.repository)
        stamp.write_text(digest)
        say(f"built {name} in {time.monotonic() - begun:.0f} s")
    card = get_card(read_config(settings.repository / name), settings.repository / name)
    return {engine: str(certificate["precision"]) for engine, certificate in card["certificates"].items()}


def _digest(model: Model) -> str:
    sources = sorted(Path(voxtile_build.__file__).parent.rglob("*.py"))
    text = json.dumps([model.spec.model_dump(mode="json"), versions()], sort_keys=True)
    return hashlib.sha256(text.encode() + b"".join(file.read_bytes() for file in sources)).hexdigest()
