"""An ONNX Runtime session from an entry's config, in the words of Triton's C++ backend.

It knows nothing of Triton's Python interface.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnxruntime as ort

from ..batching import Array
from ..contract import ConfigError, InGraph
from ..entry import Entry, Loaded, count, flag, one_of, threads

Provider = tuple[str, dict[str, str]]

ORT_TO_TRITON = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
}
# These numbers are the C++ backend's, not ONNX Runtime's.
GRAPH_LEVELS = {
    -1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    0: ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    1: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
EXECUTION_MODES = {0: ort.ExecutionMode.ORT_SEQUENTIAL, 1: ort.ExecutionMode.ORT_PARALLEL}
CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
ACCELERATORS = {
    "gpu_execution_accelerator": {"tensorrt": TENSORRT, "cuda": CUDA},
    "cpu_execution_accelerator": {"openvino": "OpenVINOExecutionProvider"},
}
# The C++ backend's TensorRT options that have another name in ONNX Runtime; `trt_…` names are the same in both.
TENSORRT_OPTIONS = {
    "max_workspace_size_bytes": "trt_max_workspace_size",
    "int8_calibration_table_name": "trt_int8_calibration_table_name",
    "int8_use_native_calibration_table": "trt_int8_use_native_calibration_table",
}
TENSORRT_PRECISIONS: dict[str, dict[str, str]] = {
    "FP32": {},
    "FP16": {"trt_fp16_enable": "1"},
    "BF16": {"trt_bf16_enable": "1"},
    "INT8": {"trt_int8_enable": "1"},
}
SHRINKAGE = "memory.enable_memory_arena_shrinkage"
SESSION_KEY = "session."


def load(entry: Entry, warn: Callable[[str], None]) -> Loaded:
    """Make the session.

    Args:
        entry: the model version.
        warn: takes one line for each thing that the config asks for and this process does not have.

    Raises:
        ConfigError: the model file is missing, or the config asks for what cannot be.
    """
    providers = choose_providers(entry, ort.get_available_providers(), warn)
    session = ort.InferenceSession(str(entry.model_file("model.onnx")), session_options(entry), providers=providers)
    # Otherwise ONNX Runtime silently replaces a provider that fails at run time.
    session.disable_fallback()
    options = run_options(entry)

    def run(inputs: Mapping[str, Array], outputs: Sequence[str]) -> Mapping[str, Array]:
        return dict(zip(outputs, session.run(list(outputs), dict(inputs), options), strict=True))

    return Loaded(run, _in_graph(session.get_inputs()), _in_graph(session.get_outputs()))


def session_options(entry: Entry) -> Any:
    """ONNX Runtime's session options from `parameters` and `optimization.graph.level`.

    Raises:
        ConfigError: a value that the C++ backend does not know either.
    """
    options, parameters = ort.SessionOptions(), entry.parameters
    level = int(entry.config.get("optimization", {}).get("graph", {}).get("level", 0))
    options.graph_optimization_level = one_of(GRAPH_LEVELS, level, "optimization.graph.level")
    mode = count(parameters, "execution_mode", 0)
    options.execution_mode = one_of(EXECUTION_MODES, mode, "parameter execution_mode")
    options.intra_op_num_threads = threads(parameters, "intra_op_thread_count")
    options.inter_op_num_threads = count(parameters, "inter_op_thread_count", 0)
    options.enable_cpu_mem_arena = flag(parameters, "enable_mem_arena", True)
    options.enable_mem_pattern = flag(parameters, "enable_mem_pattern", True)
    for key, value in parameters.items():
        if key.startswith(SESSION_KEY):
            options.add_session_config_entry(key, value)
    return options


def run_options(entry: Entry) -> Any:
    """ONNX Runtime's options for each run."""
    options = ort.RunOptions()
    if SHRINKAGE in entry.parameters:
        options.add_run_config_entry(SHRINKAGE, entry.parameters[SHRINKAGE])
    return options


def choose_providers(entry: Entry, available: Sequence[str], warn: Callable[[str], None]) -> list[Provider]:
    """Execution providers in order of preference; the last is always the CPU's.

    An accelerator is left out where this process does not have it, or where it needs a GPU and the instance has none.

    Args:
        entry: the model version.
        available: names of the providers that this process has.
        warn: takes one line for each accelerator that is left out.

    Raises:
        ConfigError: an unknown accelerator, or an explicit KIND_GPU without a CUDA provider.
    """
    chosen: list[Provider] = []
    wanted = entry.config.get("optimization", {}).get("execution_accelerators", {})
    for field, known in ACCELERATORS.items():
        usable = entry.on_gpu or field.startswith("cpu")
        for accelerator in wanted.get(field, []):
            provider = one_of(known, accelerator["name"], field)
            if usable and provider in available:
                chosen.append((provider, _provider_options(provider, accelerator, entry)))
            else:
                warn(f"{entry.config['name']}: {field} '{accelerator['name']}' is not available here; left out")
    return [*chosen, *_cuda_behind(entry, available, chosen), (CPU, {})]


def _cuda_behind(entry: Entry, available: Sequence[str], chosen: Sequence[Provider]) -> list[Provider]:
    """CUDA for what the other providers of an instance on a GPU do not take, as in the C++ backend."""
    if not entry.on_gpu or CUDA in dict(chosen):
        return []
    if CUDA not in available:
        raise ConfigError(
            "instance_group says KIND_GPU, but this server's ONNX Runtime has no CUDA provider "
            f"(it has {', '.join(available)}); use KIND_CPU or KIND_AUTO, or a server with a GPU"
        )
    return [(CUDA, {"device_id": str(entry.device_id)})]


def _provider_options(provider: str, accelerator: Mapping[str, Any], entry: Entry) -> dict[str, str]:
    parameters: Mapping[str, str] = accelerator.get("parameters", {})
    if provider not in (CUDA, TENSORRT):
        return dict(parameters)
    options = {"device_id": str(entry.device_id)}
    for key, value in parameters.items():
        if key == "precision_mode":
            options |= one_of(TENSORRT_PRECISIONS, value, "precision_mode")
        else:
            options[TENSORRT_OPTIONS.get(key, key)] = value
    return options


def _in_graph(tensors: Sequence[Any]) -> list[InGraph]:
    """The graph's tensors. ONNX Runtime gives a free axis as a string, or as None where it has no name."""
    return [
        InGraph(
            tensor.name,
            ORT_TO_TRITON.get(tensor.type, tensor.type),
            tuple(size if isinstance(size, int) else -1 for size in tensor.shape) or None,
        )
        for tensor in tensors
    ]
