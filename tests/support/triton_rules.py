"""Triton's own rules on what a backend takes: kinds of instances and types of tensors.

Written down apart from the build, from Triton's sources, so that a repository is not judged by what built it. Sources:
`InstanceHasKindGPU` and `ConvertTrtTypeToDataType` of tensorrt_backend, `ModelState::LoadModel` and
`ConvertFromOnnxDataType` of onnxruntime_backend, `ConvertFromOpenVINOElement` of openvino_backend,
`ModelConfigDataTypeToTorchType` of pytorch_backend.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tritonclient.grpc import model_config_pb2 as pb

GROUP = pb.ModelInstanceGroup
INTEGERS = {pb.TYPE_INT8, pb.TYPE_INT16, pb.TYPE_INT32, pb.TYPE_INT64}
UNSIGNED = {pb.TYPE_UINT8, pb.TYPE_UINT16, pb.TYPE_UINT32, pb.TYPE_UINT64}
FLOATS = {pb.TYPE_FP16, pb.TYPE_FP32}

KINDS = {
    "pytorch": {GROUP.KIND_CPU, GROUP.KIND_GPU},
    "tensorrt": {GROUP.KIND_GPU},
    "onnxruntime": {GROUP.KIND_CPU, GROUP.KIND_GPU},
    "openvino": {GROUP.KIND_CPU},
}
TYPES = {
    "pytorch": {*FLOATS, *INTEGERS, pb.TYPE_FP64, pb.TYPE_UINT8, pb.TYPE_BOOL},
    "tensorrt": {*FLOATS, pb.TYPE_BF16, pb.TYPE_INT8, pb.TYPE_INT32, pb.TYPE_INT64, pb.TYPE_UINT8, pb.TYPE_BOOL},
    "onnxruntime": {*FLOATS, *INTEGERS, *UNSIGNED, pb.TYPE_FP64, pb.TYPE_BOOL, pb.TYPE_STRING, pb.TYPE_BF16},
    "openvino": {*FLOATS, *INTEGERS, *UNSIGNED, pb.TYPE_BOOL},
}
ACCELERATORS = {"onnxruntime": {"tensorrt", "cuda"}}


def faults(configs: Mapping[str, pb.ModelConfig]) -> list[str]:
    """What Triton would refuse in the configs of a repository, a few words each.

    Args:
        configs: by the name of their folder.
    """
    return [f"{name}: {fault}" for name, config in configs.items() for fault in _faults(config, configs)]


def _faults(config: pb.ModelConfig, configs: Mapping[str, pb.ModelConfig]) -> Iterator[str]:
    if config.platform == "ensemble":
        yield from _ensemble_faults(config, configs)
        return
    if config.backend not in KINDS:
        yield f"no rules for the backend {config.backend!r}"
        return
    for group in config.instance_group:
        if group.kind not in KINDS[config.backend]:
            yield f"{config.backend} on {GROUP.Kind.Name(group.kind)}"
        if group.gpus and group.kind != GROUP.KIND_GPU:
            yield "GPUs named for instances that are not on GPUs"
    for tensor in (*config.input, *config.output):
        if tensor.data_type not in TYPES[config.backend]:
            yield f"{tensor.name} is {pb.DataType.Name(tensor.data_type)}"
    wanted = {one.name for one in config.optimization.execution_accelerators.gpu_execution_accelerator}
    if not wanted <= ACCELERATORS.get(config.backend, set()):
        yield f"accelerators {sorted(wanted)}"
    if wanted and not any(group.kind == GROUP.KIND_GPU for group in config.instance_group):
        yield "accelerators of a GPU without instances on one"


def _ensemble_faults(config: pb.ModelConfig, configs: Mapping[str, pb.ModelConfig]) -> Iterator[str]:
    """An ensemble hands tensors on as they are: names must exist, and types must agree."""
    if config.instance_group:
        yield "an ensemble has no instances"
    known = {tensor.name: tensor.data_type for tensor in config.input}
    for step in config.ensemble_scheduling.step:
        behind = configs.get(step.model_name)
        if behind is None:
            yield f"no model {step.model_name}"
            continue
        if behind.max_batch_size != config.max_batch_size:
            yield f"{step.model_name} takes batches of {behind.max_batch_size}"
        inputs = {tensor.name: tensor.data_type for tensor in behind.input}
        if set(step.input_map) != set(inputs):
            yield f"{step.model_name} has the inputs {sorted(inputs)}"
        for name, source in step.input_map.items():
            if known.get(source) != inputs.get(name):
                yield f"{source} is no {name} of {step.model_name}"
        outputs = {tensor.name: tensor.data_type for tensor in behind.output}
        for name, target in step.output_map.items():
            if name not in outputs:
                yield f"{step.model_name} has no output {name}"
            known[target] = outputs.get(name)
    for tensor in config.output:
        if known.get(tensor.name) != tensor.data_type:
            yield f"the output {tensor.name} comes from no step, or in another type"
