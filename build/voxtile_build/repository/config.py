"""config.pbtxt of every kind of entry, made, written and read through Triton's own protobuf schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from voxtile.card import Card
from voxtile_build.errors import RepositoryError
from voxtile_build.repository.card import set_card
from voxtile_build.repository.durable import replace_text
from voxtile_build.repository.entries import CONFIG, entry_name, mean_name, score_name
from voxtile_build.spec.serving import Serving
from voxtile_build.spec.spec import Spec, input_names

if TYPE_CHECKING:  # reading a repository should not load the engines
    from voxtile_build.engines.base import Engine

TRITON_TYPES = {"fp32": pb.TYPE_FP32, "fp16": pb.TYPE_FP16, "int16": pb.TYPE_INT16, "uint8": pb.TYPE_UINT8}
# Above this, warming up every batch size costs more at start than it saves: powers of two and the largest must do.
WARM_EVERY_SIZE_TO = 8
EMBEDDED_CONFIG = "configs/embedded.pbtxt"
"""Triton reads it in place of config.pbtxt if it is started with `--model-config-name=embedded`."""
PLACEHOLDER = "An ensemble has no file of its own; Triton only asks for the version folder.\n"


def engine_config(
    spec: Spec,
    engine: Engine,
    parameters: Mapping[str, str] = {},
    accelerators: Mapping[str, Mapping[str, str]] = {},
) -> pb.ModelConfig:
    """The config of one engine's entry.

    Args:
        spec: the model, under the name of its fold.
        engine: the engine of the entry.
        parameters: of config.pbtxt; they take precedence over those of the engine.
        accelerators: execution accelerators that the engine gives its graph to on a GPU, each with its options.
    """
    config = _config(spec, entry_name(spec.name, engine.name))
    for tensor in (*config.input, *config.output):
        tensor.name = engine.tensor_name(tensor.name)
    config.backend, config.platform = engine.backend, engine.platform
    config.default_model_filename = engine.default_model_filename
    config.dynamic_batching.CopyFrom(_batching(spec.serving))
    config.instance_group.append(instances(spec.serving, engine.serves_on(spec)))
    if spec.serving.warm_up:
        config.model_warmup.extend(_warm_up(spec, engine, size) for size in warm_up_sizes(spec.serving.max_batch_size))
    for key, value in {**engine.parameters(spec), **parameters}.items():
        config.parameters[key].string_value = value
    for name, options in accelerators.items():
        config.optimization.execution_accelerators.gpu_execution_accelerator.add(name=name, parameters=options)
    return config


def public_config(spec: Spec, card: Card, folds: Sequence[str]) -> pb.ModelConfig:
    """The config of the ensemble that clients call: a step for the engine of each fold, and the card.

    Several folds get the same tile in parallel, and a last step averages their scores.
    """
    config = _config(spec, spec.name)
    config.platform = "ensemble"
    alone = len(folds) == 1
    for index, fold in enumerate(folds):
        inputs = {name: name for name in input_names(spec)}
        _add_step(config, entry_name(fold, card.engine), inputs, "scores" if alone else score_name(index))
    if not alone:
        scores = [score_name(index) for index in range(len(folds))]
        _add_step(config, mean_name(spec.name), dict(zip(scores, scores, strict=True)), "scores")
    set_card(config, card)
    return config


def _add_step(config: pb.ModelConfig, entry: str, inputs: Mapping[str, str], scores: str) -> None:
    step = config.ensemble_scheduling.step.add()
    step.model_name = entry
    step.model_version = -1  # the newest: entries are swapped one by one, so an engine's may be ahead for a moment
    for name, source in inputs.items():
        step.input_map[name] = source
    step.output_map["scores"] = scores


def warm_up_sizes(max_batch_size: int) -> tuple[int, ...]:
    """Batch sizes that the server runs once when it loads the model; certificates measure the same ones."""
    if max_batch_size <= WARM_EVERY_SIZE_TO:
        return tuple(range(1, max_batch_size + 1))
    powers = [2**power for power in range(max_batch_size.bit_length())]
    return tuple(sorted({*powers, max_batch_size}))


def write_config(config: pb.ModelConfig, folder: Path) -> None:
    """Write config.pbtxt into `folder`, in one step."""
    # Protobuf writes the keys of maps sorted, so the same model gives the same bytes.
    replace_text(folder / CONFIG, text_format.MessageToString(config))


def write_engine_config(config: pb.ModelConfig, folder: Path) -> None:
    """Write config.pbtxt of an engine's entry; where it names a platform, also one without it.

    The embedded server is older than some platforms and would refuse to start; its own backends need none.
    """
    write_config(config, folder)
    if config.platform:
        embedded = pb.ModelConfig()
        embedded.CopyFrom(config)
        embedded.ClearField("platform")
        file = folder / EMBEDDED_CONFIG
        file.parent.mkdir(exist_ok=True)
        replace_text(file, text_format.MessageToString(embedded))


def read_config(folder: Path) -> pb.ModelConfig:
    """The config of the entry in `folder`.

    Raises:
        RepositoryError: there is none, or it is not a ModelConfig.
    """
    path = folder / CONFIG
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RepositoryError(f"{path}: cannot be read ({error.strerror}); build the entry first") from None
    except UnicodeDecodeError as error:
        raise RepositoryError(f"{path}: not a Triton model config: {error}; build the entry again") from None
    try:
        return text_format.Parse(text, pb.ModelConfig())
    except (text_format.ParseError, RecursionError) as error:
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
    # Any queue policy costs pauses of half a second, even one that only permits timeouts (decision 10). max_queue_size
    # is never set: an ensemble whose step overflows can hang on servers before 26.02.
    if serving.default_timeout_microseconds:
        policy = batching.default_queue_policy
        policy.timeout_action = pb.ModelQueuePolicy.REJECT
        policy.default_timeout_microseconds = serving.default_timeout_microseconds
        policy.allow_timeout_override = True
    return batching


def instances(serving: Serving, device: str) -> pb.ModelInstanceGroup:
    """The instances of an entry: `serving.count` on the CPU or on each of its GPUs, none of which named means all.

    Args:
        serving: of the spec.
        device: the kind of device, `cpu` or `gpu`.
    """
    if device == "cpu":
        return pb.ModelInstanceGroup(kind=pb.ModelInstanceGroup.KIND_CPU, count=serving.count)
    gpus = serving.gpus if isinstance(serving.gpus, tuple) else ()
    return pb.ModelInstanceGroup(kind=pb.ModelInstanceGroup.KIND_GPU, count=serving.count, gpus=gpus)


def _warm_up(spec: Spec, engine: Engine, batch: int) -> pb.ModelWarmup:
    sample = pb.ModelWarmup(name=f"batch_{batch}", batch_size=batch)
    roi = sample.inputs[engine.tensor_name("roi")]
    roi.data_type, roi.zero_data = TRITON_TYPES[spec.input.dtype], True
    roi.dims.extend(spec.roi_shape)
    if spec.whole_scan_intensity:
        intensity = sample.inputs[engine.tensor_name("intensity")]
        intensity.data_type, intensity.zero_data = pb.TYPE_FP32, True
        intensity.dims.extend((len(spec.input.channels), 2))
    return sample
