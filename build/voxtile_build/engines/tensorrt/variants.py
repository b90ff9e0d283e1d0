"""The TensorRT engine: a plan where a GPU and TensorRT are at hand, else the place to build it."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any, cast

import numpy as np
import onnx
from numpy.typing import NDArray

from voxtile_build.engines.base import Compiled
from voxtile_build.engines.onnxruntime.accelerator import tensorrt_accelerator_parameters
from voxtile_build.engines.onnxruntime.variants import mixed_precision
from voxtile_build.engines.tensorrt.container import container_advice
from voxtile_build.engines.tensorrt.facts import visible_gpu
from voxtile_build.engines.tensorrt.network import Precision
from voxtile_build.engines.tensorrt.plan import EngineOptions, build_engine, write_plan
from voxtile_build.engines.tensorrt.profile import Profile, batch_profile
from voxtile_build.errors import EngineError
from voxtile_build.graph.graphs import Graphs
from voxtile_build.hashing import file_sha256
from voxtile_build.precision.mixed_precision import preparing_nodes, to_mixed
from voxtile_build.precision.quantize_qdq import quantize_qdq
from voxtile_build.repository.entries import entry_name
from voxtile_build.spec.serving import Serving
from voxtile_build.spec.spec import Spec

Array = NDArray[Any]

MODULE = "tensorrt"
# As the server sees it; compose and Kubernetes mount a volume there.
CACHE = PurePosixPath("/var/cache/voxtile/tensorrt")


def require_gpu(spec: Spec) -> None:
    """Raises EngineError with the container's command where this machine cannot build a plan."""
    missing = []
    if visible_gpu() is None:
        missing.append("a GPU")
    if importlib.util.find_spec(MODULE) is None:
        missing.append("TensorRT")
    if missing:
        raise EngineError(f"{spec.name}: " + container_advice(" and ".join(missing), _arguments(spec), Path.cwd()))


def _arguments(spec: Spec) -> list[str]:
    source = ["nnunet", "FOLDER", "--name", spec.name] if spec.nnunet else ["spec", f"models/{spec.name}.toml"]
    return [*source, "--repository", "model_repository", "--engines", "tensorrt"]


def compile_plan(graphs: Graphs, folder: Path, precision: str, kept: frozenset[str] = frozenset()) -> Compiled:
    """model.plan and, in the entry's folder, plan.json with the facts that it is valid for.

    Raises EngineError where no GPU or no TensorRT is at hand, or the builder refuses the graph.
    """
    require_gpu(graphs.spec)
    trt = importlib.import_module(MODULE)
    model, facts = plan_graph(graphs, precision, kept)
    data = model.SerializeToString()
    profile = serving_profile(model, graphs.spec.serving)
    layers = frozenset(facts.get("kept", ())) | frozenset(facts.get("kept_near_overflow", ()))
    options = EngineOptions(kept_higher=layers)
    engine = build_engine(trt, data, profile, cast(Precision, precision), options)
    plan = write_plan(engine, folder.parent, graphs.spec.version)
    return Compiled((plan,), precision, PlanRunner(trt, plan.read_bytes()), {}, facts, tuple(graphs.notes))


def plan_graph(
    graphs: Graphs, precision: str, kept: frozenset[str] = frozenset()
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The graph in which `precision` is written, where TensorRT reads it from, and the facts of it."""
    if precision == "fp16":
        return mixed_precision(graphs, kept)
    if precision == "bf16":
        return to_mixed(graphs.base, "bf16", kept | preparing_nodes(graphs.base)), {}
    if precision == "int8":
        return quantize_qdq(graphs.base, graphs.calibration.feeds, kept), {"calibration": graphs.calibration.as_dict()}
    return onnx.load(graphs.onnx_file), {}


def serving_profile(model: onnx.ModelProto, serving: Serving) -> Profile:
    """From one tile to max_batch, best at the largest batch that the server waits for."""
    return batch_profile(
        model, 1, max(serving.preferred_batch_size or (serving.max_batch_size,)), serving.max_batch_size
    )


def accelerator(onnx_file: Path, spec: Spec) -> Mapping[str, str]:
    """What config.pbtxt tells ONNX Runtime's TensorRT provider, so that the server builds the engine itself."""
    profile = serving_profile(onnx.load(onnx_file, load_external_data=False), spec.serving)
    gpu = visible_gpu()
    name = gpu.architecture if gpu else "gpu"
    return tensorrt_accelerator_parameters(
        entry_name(spec.name, "onnxruntime"), name, CACHE, profile, onnx_sha256=file_sha256(onnx_file)
    )


class PlanRunner:
    """Runs a plan on the first GPU; inputs and scores pass through PyTorch's tensors there."""

    def __init__(self, trt: ModuleType, plan: bytes) -> None:
        self._trt = trt
        self._logger = trt.Logger(trt.Logger.ERROR)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineError("TensorRT cannot load the plan that it has just built; see its messages above")
        self._context = self._engine.create_execution_context()

    def __call__(self, inputs: Mapping[str, Array]) -> Array:
        """`scores` [batch, score, *spatial] for named inputs, batch first."""
        import torch

        if not torch.cuda.is_available():
            raise EngineError("the plan's certificate needs PyTorch with CUDA; install it in the container")
        given = {name: torch.from_numpy(np.ascontiguousarray(value)).cuda() for name, value in inputs.items()}
        for name, tensor in given.items():
            self._context.set_input_shape(name, tuple(tensor.shape))
            self._context.set_tensor_address(name, tensor.data_ptr())
        kind = self._trt.nptype(self._engine.get_tensor_dtype("scores"))
        empty = np.empty(tuple(self._context.get_tensor_shape("scores")), dtype=kind)
        scores = torch.from_numpy(empty).cuda()
        self._context.set_tensor_address("scores", scores.data_ptr())
        stream = torch.cuda.current_stream()
        if not self._context.execute_async_v3(stream.cuda_stream):
            raise EngineError(f"TensorRT fails at a batch of {len(inputs['roi'])}")
        stream.synchronize()
        return np.asarray(scores.cpu().numpy())
