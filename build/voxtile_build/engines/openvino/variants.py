"""The OpenVINO engine in bf16 and int8, and what the CPU at hand really computes in."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import openvino as ov

from voxtile_build.arrays import Feed
from voxtile_build.engines.base import Compiled
from voxtile_build.engines.openvino.quantize import quantize_openvino, quantized_convolutions
from voxtile_build.engines.openvino.runner import OpenVinoRunner, read, write
from voxtile_build.graph.graphs import Graphs
from voxtile_build.graph.torch_to_onnx import save
from voxtile_build.precision.quantize_qdq import QuantizationError

# Kinds of layers, in the words of OpenVINO's own executable graph, that carry nearly all arithmetic.
COMPUTE = frozenset({"Convolution", "Deconvolution", "FullyConnected", "MatMul", "ScaledDotProductAttention", "SDPA"})
NAMES = {"f32": "fp32", "bf16": "bf16", "f16": "fp16", "i8": "int8", "u8": "int8"}


def has_bf16() -> bool:
    """Whether this CPU has bf16 arithmetic (AVX-512 BF16 or AMX); without it OpenVINO emulates or ignores bf16."""
    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def compile_bf16(graphs: Graphs, folder: Path, _: frozenset[str] = frozenset()) -> Compiled:
    """model.xml of the composed graph; the weights stay fp32 in the file, the CPU computes in bf16."""
    return _open(write(_read(graphs), folder), "bf16", "bf16", graphs)


def compile_int8(graphs: Graphs, folder: Path, kept: frozenset[str] = frozenset()) -> Compiled:
    """model.xml with int8 convolutions by NNCF; what is not int8 is bf16 where the CPU has it, else fp32.

    kept: ONNX names of convolutions that stay as they were. Raises QuantizationError where none becomes int8.
    """
    model = _read(graphs)
    present = {operation.get_friendly_name() for operation in model.get_ops()}
    quantized = quantize_openvino(model, graphs.calibration.feeds, kept & present)
    count = quantized_convolutions(quantized)
    if not count:
        raise QuantizationError("No convolution is left for int8 between the first and the last: use bf16 or fp32.")
    compiled = _open(write(quantized, folder), "int8", "bf16" if has_bf16() else "f32", graphs)
    compiled.facts.update(int8_convolutions=count, kept=sorted(kept), calibration=graphs.calibration.as_dict())
    return compiled


def _read(graphs: Graphs) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        files = save(graphs.fused, Path(folder) / "model.onnx")
        return read(files[0])


def _open(files: tuple[Path, ...], precision: str, hint: str, graphs: Graphs) -> Compiled:
    runner = OpenVinoRunner(files[0], graphs.spec.serving.threads, hint)
    facts = effective(runner, graphs.calibration.example, hint)
    notes = _notes(precision, hint, facts)
    # The C++ backend reads HINT_BF16 alone, the embedded server's either.
    parameters = {"INFERENCE_PRECISION_HINT": hint, **({"HINT_BF16": "YES"} if hint == "bf16" else {})}
    return Compiled(files, precision, runner, parameters, facts, (*graphs.notes, *notes))


def effective(runner: OpenVinoRunner, example: Feed, hint: str) -> dict[str, Any]:
    """What the compiled model says of itself: its precision, and how many layers run in which."""
    compiled = runner.compiled(example)
    layers: Counter[str] = Counter()
    for operation in compiled.get_runtime_model().get_ops():
        info = operation.get_rt_info()
        if "layerType" in info and info["layerType"].value in COMPUTE:
            kind = info["runtimePrecision"].value
            layers[NAMES.get(kind, kind)] += 1
    chosen = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    return {
        "hint": hint,
        "effective": NAMES.get(chosen, chosen),
        "native": has_bf16(),
        "layers": dict(sorted(layers.items())),
    }


def _notes(precision: str, hint: str, facts: dict[str, Any]) -> list[str]:
    if hint != "bf16":
        return [] if facts["native"] else [f"{precision}: this CPU has no bf16, so what is not int8 stays fp32"]
    if facts["effective"] != "bf16":
        return [
            f"{precision}: OpenVINO ignores bf16 on this CPU and computes in {facts['effective']}: the certificate "
            "is of that"
        ]
    if not facts["native"]:
        return [f"{precision}: this CPU has no bf16 arithmetic; OpenVINO emulates it, which is slow"]
    return []


def reopen(compiled: Compiled, files: tuple[Path, ...], graphs: Graphs) -> Compiled:
    """The same engine from where its files lie now."""
    hint = compiled.parameters.get("INFERENCE_PRECISION_HINT", "f32")
    return replace(compiled, files=files, run=OpenVinoRunner(files[0], graphs.spec.serving.threads, hint))
