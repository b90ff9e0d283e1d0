"""The engines that an entry can be built for, one row each: how it is made, how it is run, how it is configured.

To add an engine or a variant of one, add a row; nothing else asks which engine it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import onnxruntime as ort
import openvino as ov

from voxtile_build.arrays import Runner
from voxtile_build.engines.onnxruntime.runner import OnnxRuntimeRunner, copy
from voxtile_build.engines.openvino.runner import OpenVinoRunner, convert
from voxtile_build.errors import EngineError
from voxtile_build.spec.spec import Spec


@dataclass(frozen=True)
class Compiled:
    """An engine in its version folder: the files it consists of, the precision it computes in, how to run it.

    parameters: of config.pbtxt, over those of the engine; facts: what the certificate says of the precision;
    notes: what the user should know of it, in sentences.
    """

    files: tuple[Path, ...]
    precision: str
    run: Runner
    parameters: Mapping[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Engine:
    """compile: (ONNX file, version folder, spec) -> Compiled; parameters: of config.pbtxt; gpu: whether it can."""

    name: str
    backend: str
    version: str
    gpu: bool
    compile: Callable[[Path, Path, Spec], Compiled]
    parameters: Callable[[Spec], Mapping[str, str]]


def compile_onnxruntime(onnx_file: Path, folder: Path, spec: Spec) -> Compiled:
    """model.onnx, fp32."""
    files = copy(onnx_file, folder)
    return Compiled(files, "fp32", OnnxRuntimeRunner(files[0], spec.serving.threads))


def compile_openvino(onnx_file: Path, folder: Path, spec: Spec) -> Compiled:
    """model.xml and model.bin, fp32."""
    files = convert(onnx_file, folder)
    return Compiled(files, "fp32", OpenVinoRunner(files[0], spec.serving.threads))


def onnxruntime_parameters(spec: Spec) -> dict[str, str]:
    """Thread counts under the names of Triton's onnxruntime backend."""
    return {"intra_op_thread_count": str(spec.serving.threads)} if spec.serving.threads else {}


def openvino_parameters(spec: Spec) -> dict[str, str]:
    """Properties under the names of Triton's openvino backend.

    The C++ backend fixes the batch at max_batch and refuses every smaller one unless it may pad it.
    """
    parameters = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}
    if spec.serving.threads:
        parameters["INFERENCE_NUM_THREADS"] = str(spec.serving.threads)
    if spec.serving.max_batch_size > 1:
        parameters["ENABLE_BATCH_PADDING"] = "YES"
    if spec.tiling.multiple is not None:
        # Each size of slices would cost a compilation in the middle of a scan.
        parameters["STATIC_VARIANTS"] = "0"
    return parameters


def _tensorrt_version() -> str:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version("tensorrt")
    return "none"


def compile_tensorrt(_: Path, __: Path, spec: Spec) -> Compiled:
    """A plan is made of another graph in each precision, see `tensorrt_precision`."""
    raise EngineError(f"{spec.name}: a TensorRT plan is built by tensorrt_precision.compile_plan")


ENGINES = (
    Engine("onnxruntime", "onnxruntime", ort.__version__, True, compile_onnxruntime, onnxruntime_parameters),
    Engine("openvino", "openvino", ov.__version__, False, compile_openvino, openvino_parameters),
    Engine("tensorrt", "tensorrt", _tensorrt_version(), True, compile_tensorrt, lambda spec: {}),
)


def find_engine(name: str) -> Engine:
    """The engine called `name`.

    Raises EngineError where this installation cannot build it.
    """
    for engine in ENGINES:
        if engine.name == name:
            return engine
    raise EngineError(f"engine {name!r} cannot be built here; this installation builds {', '.join(engine_names())}")


def engine_names() -> tuple[str, ...]:
    """Names of the engines that can be built."""
    return tuple(engine.name for engine in ENGINES)
