"""How entries of a model repository and their files are called. Knows names, not what lies behind them."""

from __future__ import annotations

import re

from tritonclient.grpc import model_config_pb2 as pb

from voxtile_build.spec.engines import ENGINE_NAMES

CONFIG = "config.pbtxt"
CERTIFICATE = "certificate.json"
BUILD_FACTS = "build.json"
"""What changes from one build to the next, such as times; all other files are reproducible."""

MEAN_ENGINE = "onnxruntime"
"""The engine that averages the scores of several folds: it runs any ONNX graph as it is."""


def entry_name(name: str, engine: str) -> str:
    """The entry of one engine behind the public name."""
    return f"{name}_{engine}"


def fold_name(entry: str) -> str:
    """The fold that the entry of an engine belongs to: the entry's name without the engine."""
    return re.sub(rf"_({'|'.join(ENGINE_NAMES)})$", "", entry)


def version_entry(name: str, version: int) -> str:
    """The entry that keeps one version of a public model; no public name has a dot."""
    return f"{name}.v{version}"


def version_of(config: pb.ModelConfig) -> int:
    """The version that a public config serves."""
    return max(config.version_policy.specific.versions, default=1)


def mean_name(name: str) -> str:
    """The entry that averages the scores of a public model's folds."""
    return entry_name(f"{name}_mean", MEAN_ENGINE)


def score_name(index: int) -> str:
    """The input tensor of the averaging entry that holds the scores of the fold numbered `index`."""
    return f"scores_{index}"


def fold_names(config: pb.ModelConfig) -> tuple[str, ...]:
    """The folds of a public config, in order."""
    return tuple(fold_name(step.model_name) for step in config.ensemble_scheduling.step if not is_mean_step(step))


def mean_entry(config: pb.ModelConfig) -> str | None:
    """The entry that averages the scores of a public config's folds; None where there is one fold."""
    return next((step.model_name for step in config.ensemble_scheduling.step if is_mean_step(step)), None)


def is_mean_step(step: pb.ModelEnsembling.Step) -> bool:
    """Whether a step averages the scores of folds; a version's averaging entry is not called after the public name."""
    return score_name(0) in step.input_map
