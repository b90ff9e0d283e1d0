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


def mean_name(name: str) -> str:
    """The entry that averages the scores of a public model's folds."""
    return entry_name(f"{name}_mean", MEAN_ENGINE)


def score_name(index: int) -> str:
    """The input tensor of the averaging entry that holds the scores of the fold numbered `index`."""
    return f"scores_{index}"


def fold_names(config: pb.ModelConfig) -> tuple[str, ...]:
    """The folds of a public config, in order."""
    entries = [step.model_name for step in config.ensemble_scheduling.step]
    return tuple(fold_name(entry) for entry in entries if entry != mean_name(config.name))
