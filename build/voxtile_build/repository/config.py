"""Entries of a Triton model repository: config.pbtxt through its protobuf schema, and the folders around it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from voxtile_build.errors import RepositoryError
from voxtile_build.spec.spec import ENGINE_NAMES, Serving, Spec, input_names

if TYPE_CHECKING:  # so that who only reads a repository loads no engine
    from voxtile_build.engines.base import Engine

CONFIG = "config.pbtxt"
TRITON_TYPES = {"fp32": pb.TYPE_FP32, "fp16": pb.TYPE_FP16, "int16": pb.TYPE_INT16, "uint8": pb.TYPE_UINT8}
# Beyond this every size would cost more at start than it saves: then powers of two and the largest.
WARM_EVERY_SIZE_TO = 8
PLACEHOLDER = "An ensemble has no file of its own; Triton only asks for the version folder.\n"


def entry_name(name: str, engine: str) -> str:
    """The entry of one engine behind the public name."""
    return f"{name}_{engine}"


def member_name(entry: str) -> str:
    """What the entry of one engine is called before the engine."""
    return re.sub(rf"_({'|'.join(ENGINE_NAMES)})$", "", entry)


def mean_name(name: str) -> str:
    """The entry that averages the scores of a public model's folds."""
    return entry_name(f"{name}_mean", "onnxruntime")


def score_name(index: int) -> str:
    """The tensor in which a member's scores go to the averaging entry."""
    return f"scores_{index}"


def engine_config(
    spec: Spec,
    engine: Engine,
    parameters: Mapping[str, str] = {},
    accelerators: Mapping[str, Mapping[str, str]] = {},
) -> pb.ModelConfig:
    """The config of one engine's entry.

    parameters: over those of the engine; accelerators: what an engine on a GPU hands its graph to, with its options.
    """
    config = _config(spec, entry_name(spec.name, engine.name))
    config.backend = engine.backend
    config.dynamic_batching.CopyFrom(_batching(spec.serving))
    config.instance_group.append(_instances(spec.serving, engine))
    if spec.serving.warm_up:
        config.model_warmup.extend(_warm_up(spec, size) for size in warm_up_sizes(spec.serving.max_batch_size))
    for key, value in {**engine.parameters(spec), **parameters}.items():
        config.parameters[key].string_value = value
    for name, options in accelerators.items():
        config.optimization.execution_accelerators.gpu_execution_accelerator.add(name=name, parameters=options)
    return config


def public_config(spec: Spec, card: Mapping[str, Any], folds: Sequence[str]) -> pb.ModelConfig:
    """The config of the ensemble that clients call: a step to each member's engine, and the card.

    Several folds get the same tile side by side, and a last step averages their scores.
    """
    config = _config(spec, spec.name)
    config.platform = "ensemble"
    alone = len(folds) == 1
    for index, fold in enumerate(folds):
        inputs = {name: name for name in input_names(spec)}
        _add_step(config, entry_name(fold, card["engine"]), inputs, "scores" if alone else score_name(index))
    if not alone:
        scores = [score_name(index) for index in range(len(folds))]
        _add_step(config, mean_name(spec.name), dict(zip(scores, scores, strict=True)), "scores")
    set_card(config, card)
    return config


def _add_step(config: pb.ModelConfig, entry: str, inputs: Mapping[str, str], scores: str) -> None:
    step = config.ensemble_scheduling.step.add()
    step.model_name = entry
    step.model_version = -1  # the latest: an engine's entry may be a version ahead while both are swapped
    for name, source in inputs.items():
        step.input_map[name] = source
    step.output_map["scores"] = scores


def fold_names(config: pb.ModelConfig) -> tuple[str, ...]:
    """The folds of a public config, in order."""
    entries = [step.model_name for step in config.ensemble_scheduling.step]
    return tuple(member_name(entry) for entry in entries if entry != mean_name(config.name))


def set_card(config: pb.ModelConfig, card: Mapping[str, Any]) -> None:
    """Put `card` into a public config and point every fold's step at the engine that the card names."""
    for step in config.ensemble_scheduling.step:
        if step.model_name != mean_name(config.name):
            step.model_name = entry_name(member_name(step.model_name), card["engine"])
    config.parameters["card"].string_value = json.dumps(card, sort_keys=True, separators=(",", ":"))


def get_card(config: pb.ModelConfig, where: Path) -> dict[str, Any]:
    """The card in a public config.

    Raises RepositoryError where there is none.
    """
    if "card" not in config.parameters:
        raise RepositoryError(f"{where}: expected a public entry with the parameter card, found none; build it again")
    card: dict[str, Any] = json.loads(config.parameters["card"].string_value)
    return card


def warm_up_sizes(max_batch_size: int) -> tuple[int, ...]:
    """Batch sizes to run once at start."""
    if max_batch_size <= WARM_EVERY_SIZE_TO:
        return tuple(range(1, max_batch_size + 1))
    powers = [2**power for power in range(max_batch_size.bit_length())]
    return tuple(sorted({*powers, max_batch_size}))


def write_config(config: pb.ModelConfig, folder: Path) -> None:
    """Write `folder`/config.pbtxt by atomic rename."""
    partial = folder / f".{CONFIG}.partial"
    # Map keys come out sorted, so the same model gives the same bytes.
    partial.write_text(text_format.MessageToString(config), encoding="utf-8")
    os.replace(partial, folder / CONFIG)


def read_config(folder: Path) -> pb.ModelConfig:
    """The config of the entry in `folder`.

    Raises RepositoryError where there is none, or it is not a ModelConfig.
    """
    path = folder / CONFIG
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RepositoryError(f"{path}: cannot be read ({error.strerror}); build the entry first") from None
    try:
        return text_format.Parse(text, pb.ModelConfig())
    except text_format.ParseError as error:
        raise RepositoryError(f"{path}: not a Triton model config: {error}") from None


def _config(spec: Spec, name: str) -> pb.ModelConfig:
    config = pb.ModelConfig(name=name, max_batch_size=spec.serving.max_batch_size)
    config.version_policy.specific.versions.append(spec.version)
    channels = len(spec.input.channels)
    config.input.add(name="roi", data_type=TRITON_TYPES[spec.input.dtype], dims=(channels, *spec.spatial_dims))
    if spec.whole_scan_intensity:
        config.input.add(name="intensity", data_type=pb.TYPE_FP32, dims=(channels, 2))
    scores = (spec.output.score_count, *spec.spatial_dims)
    config.output.add(name="scores", data_type=TRITON_TYPES[spec.output.dtype], dims=scores)
    return config


def _batching(serving: Serving) -> pb.ModelDynamicBatching:
    batching = pb.ModelDynamicBatching(
        preferred_batch_size=serving.preferred_batch_size or (),
        max_queue_delay_microseconds=serving.max_queue_delay_microseconds,
        priority_levels=serving.priority_levels,
        default_priority_level=(serving.priority_levels + 1) // 2,
    )
    # Any queue policy, even the leave to set timeouts, costs pauses of half a second: decision 10. Nor is there ever a
    # max_queue_size: an ensemble whose step overflows can hang on servers before 26.02.
    if serving.default_timeout_microseconds:
        policy = batching.default_queue_policy
        policy.timeout_action = pb.ModelQueuePolicy.REJECT
        policy.default_timeout_microseconds = serving.default_timeout_microseconds
        policy.allow_timeout_override = True
    return batching


def _instances(serving: Serving, engine: Engine) -> pb.ModelInstanceGroup:
    if serving.gpus == "none" or not engine.gpu:
        return pb.ModelInstanceGroup(kind=pb.ModelInstanceGroup.KIND_CPU, count=serving.count)
    gpus = () if serving.gpus == "all" else serving.gpus
    return pb.ModelInstanceGroup(kind=pb.ModelInstanceGroup.KIND_GPU, count=serving.count, gpus=gpus)


def _warm_up(spec: Spec, batch: int) -> pb.ModelWarmup:
    sample = pb.ModelWarmup(name=f"batch_{batch}", batch_size=batch)
    roi = sample.inputs["roi"]
    roi.data_type, roi.zero_data = TRITON_TYPES[spec.input.dtype], True
    roi.dims.extend(spec.roi_shape)
    if spec.whole_scan_intensity:
        intensity = sample.inputs["intensity"]
        intensity.data_type, intensity.zero_data = pb.TYPE_FP32, True
        intensity.dims.extend((len(spec.input.channels), 2))
    return sample
