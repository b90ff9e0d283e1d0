"""Where each engine of a published model spends its time, by kind of operator and by layer, from its own profiler."""

from __future__ import annotations

import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2 as pb

from voxtile_build.errors import RepositoryError
from voxtile_build.repository.card import get_card
from voxtile_build.repository.config import read_config
from voxtile_build.repository.entries import CERTIFICATE, entry_name, fold_names

Array = NDArray[Any]
Inputs = Mapping[str, Array]

RUNS = 5
SLOWED = 1.05
"""A profiled run that takes this much longer than a plain one is told of: its shares hold less well."""
NUMPY_TYPES: dict[int, Any] = {pb.TYPE_FP32: np.float32, pb.TYPE_FP16: np.float16, pb.TYPE_INT16: np.int16}
SEED = 1


@dataclass(frozen=True)
class Layer:
    """One step of an engine's own plan: its name, its kind of operator, seconds of one run (the mean)."""

    name: str
    operator: str
    seconds: float


@dataclass(frozen=True)
class Timed:
    """plain: seconds of a run as served (the mean); profiled: the same with the profiler on; layers: in any order."""

    plain: float
    profiled: float
    layers: tuple[Layer, ...]


@dataclass(frozen=True)
class EngineProfile:
    """What was measured of one engine's entry; notes: what a reader must know of the figures."""

    engine: str
    entry: str
    precision: str
    timed: Timed
    notes: tuple[str, ...]

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
    """The engines of one public model beside one another, at one batch size; skipped: engine -> why it was not run."""

    model: str
    batch: int
    runs: int
    engines: tuple[EngineProfile, ...]
    skipped: dict[str, str]


def profile(name: str, repository: Path, *, runs: int = RUNS, batch: int = 1) -> Profile:
    """Run every engine of the public model `name` that this machine can run, `runs` times plain and profiled.

    Of a model of several folds the first is run; the others have the same layers.
    Raises RepositoryError where the model is not there, `runs` is below 1, or `batch` is above its max_batch.
    """
    config = read_config(repository / name)
    card = get_card(config, repository / name)
    _check(config, runs, batch)
    folds = fold_names(config)
    profiles, skipped = [], {}
    for engine in card.certificates:
        if engine not in profilers():
            skipped[engine] = "is run by the server on a GPU; profile its plan there with trtexec --dumpProfile"
            continue
        profiles.append(_profile_entry(repository / entry_name(folds[0], engine), engine, runs, batch, len(folds)))
    return Profile(name, batch, runs, tuple(profiles), skipped)


def profilers() -> dict[str, Callable[[Path, Inputs, pb.ModelConfig, int], Timed]]:
    """By engine, what times its file: (version folder, inputs, config, runs)."""
    from voxtile_build.engines.onnxruntime.profiling import profile_onnxruntime
    from voxtile_build.engines.openvino.profiling import profile_openvino

    return {"onnxruntime": profile_onnxruntime, "openvino": profile_openvino}


def timed_runs(run: Callable[[], object], runs: int) -> list[float]:
    """Seconds of each of `runs` runs, after one that is not counted."""
    run()
    seconds = []
    for _ in range(runs):
        begun = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begun)
    return seconds


def example_inputs(config: pb.ModelConfig, batch: int) -> dict[str, Array]:
    """Values such as a scan has, in the types and sizes that `config` asks for, the same at every call."""
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
    """Sizes of an input; where they are free, those that the entry is warmed up with."""
    if -1 not in value.dims:
        return tuple(value.dims)
    if not config.model_warmup:
        raise RepositoryError(
            f"{config.name}: its slices are of any size, and it has no warm-up that names a usual one; build it with "
            "serving.warm_up = true"
        )
    return tuple(config.model_warmup[0].inputs[value.name].dims)


def mean(seconds: Sequence[float]) -> float:
    """The mean, so that the layers of all runs add up to at most it."""
    return statistics.fmean(seconds)


def _check(config: pb.ModelConfig, runs: int, batch: int) -> None:
    if runs < 1:
        raise RepositoryError(f"{config.name}: expected at least 1 run, found {runs}")
    if not 1 <= batch <= config.max_batch_size:
        raise RepositoryError(f"{config.name}: expected a batch of 1 … {config.max_batch_size}, found {batch}")


def _profile_entry(entry: Path, engine: str, runs: int, batch: int, folds: int) -> EngineProfile:
    config = read_config(entry)
    folder = _latest(entry)
    timed = profilers()[engine](folder, example_inputs(config, batch), config, runs)
    certificate = json.loads((folder / CERTIFICATE).read_text(encoding="utf-8"))
    return EngineProfile(engine, entry.name, certificate["precision"], timed, tuple(_notes(timed, folds)))


def _notes(timed: Timed, folds: int) -> list[str]:
    notes = []
    slower = timed.profiled / timed.plain
    if slower > SLOWED:
        notes.append(
            f"the profiler itself slows a run {slower:.2f}×; times are of the slowed run, shares hold less well"
        )
    if folds > 1:
        notes.append(f"the first of {folds} folds, which all have these layers and run side by side")
    return notes


def _latest(entry: Path) -> Path:
    versions = [path for path in entry.iterdir() if path.name.isdecimal() and (path / CERTIFICATE).is_file()]
    if not versions:
        raise RepositoryError(
            f"{entry}: expected a version folder with {CERTIFICATE}, found none; build the model again"
        )
    return max(versions, key=lambda path: int(path.name))
