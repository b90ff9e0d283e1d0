"""Where each engine of a published model spends its time, by kind of operator and by layer.

Each engine profiles itself. Knows no engine.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient.grpc import model_config_pb2 as pb

from voxtile_build.arrays import Array
from voxtile_build.certificate.entry_files import read_entry
from voxtile_build.engines import find_engine
from voxtile_build.engines.base import Engine
from voxtile_build.engines.timing import Layer, Timed
from voxtile_build.errors import RepositoryError
from voxtile_build.repository.card import get_card
from voxtile_build.repository.config import read_config
from voxtile_build.repository.entries import CERTIFICATE, entry_name, fold_names

RUNS = 5
SLOWED = 1.05
"""If the profiler slows a run by more than this factor, the report says so: shares are less exact then."""

NUMPY_TYPES: dict[int, Any] = {pb.TYPE_FP32: np.float32, pb.TYPE_FP16: np.float16, pb.TYPE_INT16: np.int16}
SEED = 1


@dataclass(frozen=True)
class EngineProfile:
    """What was measured of one engine's entry.

    Attributes:
        engine: the engine's name.
        entry: the entry's name.
        precision: what the engine computes in.
        timed: how long it takes.
        warnings: what a reader must know of the times.
    """

    engine: str
    entry: str
    precision: str
    timed: Timed
    warnings: tuple[str, ...]

    @property
    def operators(self) -> dict[str, float]:
        """Seconds of one run by kind of operator, the longest first."""
        sums: dict[str, float] = defaultdict(float)
        for layer in self.timed.layers:
            sums[layer.operator] += layer.seconds
        return dict(sorted(sums.items(), key=lambda item: -item[1]))

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Layers, the longest first."""
        return tuple(sorted(self.timed.layers, key=lambda layer: -layer.seconds))

    @property
    def total(self) -> float:
        """Seconds of one run that the profiler saw in layers."""
        return sum(layer.seconds for layer in self.timed.layers)


@dataclass(frozen=True)
class Profile:
    """The engines of one public model, at one batch size.

    Attributes:
        model: the public name.
        batch: the batch size.
        runs: how often each engine was run, plain and profiled.
        engines: what was measured.
        skipped: why an engine was not run, by its name, as the end of a sentence.
    """

    model: str
    batch: int
    runs: int
    engines: tuple[EngineProfile, ...]
    skipped: dict[str, str]


def profile(name: str, repository: Path, *, runs: int = RUNS, batch: int = 1) -> Profile:
    """Profile every engine of a public model that this machine can run.

    If the model has several folds, the first is profiled; the others have the same layers.

    Args:
        name: the public name.
        repository: the model repository.
        runs: how often each engine is run, plain and profiled.
        batch: the batch size of every run.

    Raises:
        RepositoryError: the model is not there, `runs` is below 1, or `batch` is above its max_batch_size.
        EngineError: an engine does not load or run.
    """
    config = read_config(repository / name)
    card = get_card(config, repository / name)
    if card.parts:
        names = ", ".join(part.model for part in card.parts.models)
        raise RepositoryError(f"{repository / name}: expected a model of one network, found a set; give one of {names}")
    _check(config, runs, batch)
    folds = fold_names(config)
    profiles, skipped = [], {}
    for engine in map(find_engine, card.certificates):
        if engine.profiled_elsewhere:
            skipped[engine.name] = engine.profiled_elsewhere
            continue
        profiles.append(_profile_entry(repository / entry_name(folds[0], engine.name), engine, runs, batch, len(folds)))
    return Profile(name, batch, runs, tuple(profiles), skipped)


def example_inputs(config: pb.ModelConfig, batch: int) -> dict[str, Array]:
    """Values as of a scan, in the types and sizes of `config`; the same at every call."""
    rng = np.random.default_rng(SEED)
    inputs: dict[str, Array] = {}
    for value in config.input:
        shape, kind = (batch, *_dims(value, config)), NUMPY_TYPES[value.data_type]
        if value.name == "intensity":
            inputs[value.name] = np.broadcast_to(np.array([500, 100], kind), shape).copy()
        else:
            inputs[value.name] = np.rint(500 + 100 * rng.standard_normal(shape)).astype(kind)
    return inputs


def _dims(value: pb.ModelInput, config: pb.ModelConfig) -> Sequence[int]:
    """Sizes of an input; if they are free, those of the entry's warm-up."""
    if -1 not in value.dims:
        return tuple(value.dims)
    if not config.model_warmup:
        raise RepositoryError(
            f"{config.name}: its slices are of any size, and it has no warm-up that names a usual one; build it with "
            "serving.warm_up = true"
        )
    return tuple(config.model_warmup[0].inputs[value.name].dims)


def _check(config: pb.ModelConfig, runs: int, batch: int) -> None:
    if runs < 1:
        raise RepositoryError(f"{config.name}: expected at least 1 run, found {runs}")
    if not 1 <= batch <= config.max_batch_size:
        raise RepositoryError(f"{config.name}: expected a batch of 1 … {config.max_batch_size}, found {batch}")


def _profile_entry(entry: Path, engine: Engine, runs: int, batch: int, folds: int) -> EngineProfile:
    config = read_config(entry)
    folder = _latest(entry)
    parameters = {name: value.string_value for name, value in config.parameters.items()}
    timed = engine.profile(folder, example_inputs(config, batch), parameters, runs)
    precision = str(read_entry(entry).certificate.get("precision", ""))
    return EngineProfile(engine.name, entry.name, precision, timed, tuple(_warnings(timed, folds)))


def _warnings(timed: Timed, folds: int) -> list[str]:
    warnings = []
    slower = timed.profiled / timed.plain
    if slower > SLOWED:
        warnings.append(
            f"the profiler itself slows a run {slower:.2f}×; times are of the slowed run, shares are less exact"
        )
    if folds > 1:
        warnings.append(f"the first of {folds} folds; all have these layers, and they run in parallel")
    return warnings


def _latest(entry: Path) -> Path:
    versions = [path for path in entry.iterdir() if path.name.isdecimal() and (path / CERTIFICATE).is_file()]
    if not versions:
        raise RepositoryError(
            f"{entry}: expected a version folder with {CERTIFICATE}, found none; build the model again"
        )
    return max(versions, key=lambda path: int(path.name))
