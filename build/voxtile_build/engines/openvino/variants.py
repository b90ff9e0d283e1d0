"""The precisions of OpenVINO: fp32, bf16 and int8, and what the CPU at hand really computes in."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from voxtile_build.arrays import Feed
from voxtile_build.engines.base import Compiled, Variant
from voxtile_build.engines.openvino.convert import convert, read, write
from voxtile_build.engines.openvino.core import core
from voxtile_build.engines.openvino.quantize import quantize_openvino, quantized_convolutions
from voxtile_build.engines.openvino.runner import HINT, OpenVinoRunner
from voxtile_build.graph.graphs import BASE, FP32, FUSED, Graphs
from voxtile_build.graph.torch_to_onnx import save
from voxtile_build.precision.quantize_qdq import QuantizationError
from voxtile_build.precision.reduced import fused_layers_by_int8
from voxtile_build.spec.spec import Spec

COMPUTE = frozenset({"Convolution", "Deconvolution", "FullyConnected", "MatMul", "ScaledDotProductAttention", "SDPA"})
"""Kinds of layers that do nearly all arithmetic, as OpenVINO's executable graph names them."""

NAMES = {"f32": "fp32", "bf16": "bf16", "f16": "fp16", "i8": "int8", "u8": "int8"}


def has_bf16() -> bool:
    """Whether this CPU has bf16 arithmetic (AVX-512 BF16 or AMX); without it OpenVINO emulates or ignores bf16."""
    return "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def compile_fp32(graphs: Graphs, spec: Spec, folder: Path, _: frozenset[str] = frozenset()) -> Compiled:
    """model.xml and model.bin of the fused graph, in fp32."""
    files = convert(graphs.fused_files[0], folder)
    return Compiled(files, "fp32", OpenVinoRunner(files[0], spec.serving.threads), (BASE, FP32, FUSED))


def compile_bf16(graphs: Graphs, spec: Spec, folder: Path, _: frozenset[str] = frozenset()) -> Compiled:
    """model.xml of the fused graph; weights stay fp32 in the file, and the CPU computes in bf16."""
    return _opened(write(_read(graphs), folder), "bf16", "bf16", graphs, spec, {})


def compile_int8(graphs: Graphs, spec: Spec, folder: Path, kept: frozenset[str] = frozenset()) -> Compiled:
    """model.xml with int8 convolutions by NNCF; the other layers are bf16 if the CPU has it, else fp32.

    Args:
        graphs: what it is made of.
        spec: the model.
        folder: the version folder.
        kept: ONNX names of convolutions that keep their precision.

    Raises:
        QuantizationError: no convolution becomes int8.
    """
    model = _read(graphs)
    present = {operation.get_friendly_name() for operation in model.get_ops()}
    quantized = quantize_openvino(model, graphs.calibration.feeds, kept & present)
    count = quantized_convolutions(quantized)
    if not count:
        raise QuantizationError("No convolution is left for int8 between the first and the last: use bf16 or fp32.")
    facts = {"int8_convolutions": count, "kept": sorted(kept), "calibration": graphs.calibration.as_dict()}
    return _opened(write(quantized, folder), "int8", "bf16" if has_bf16() else "f32", graphs, spec, facts)


VARIANTS = (
    Variant("int8", compile_int8, fused_layers_by_int8),
    Variant("bf16", compile_bf16),
    Variant("fp32", compile_fp32),
)


def _read(graphs: Graphs) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        files = save(graphs.fused, Path(folder) / "model.onnx")
        return read(files[0])


def _opened(
    files: tuple[Path, ...], precision: str, hint: str, graphs: Graphs, spec: Spec, facts: dict[str, Any]
) -> Compiled:
    runner = OpenVinoRunner(files[0], spec.serving.threads, hint)
    measured = effective(runner, graphs.calibration.example, hint)
    # The backend in C++ reads only HINT_BF16, the embedded server either.
    parameters = {HINT: hint, **({"HINT_BF16": "YES"} if hint == "bf16" else {})}
    warnings = tuple(_warnings(precision, hint, measured))
    return Compiled(files, precision, runner, (BASE, FUSED), parameters, {**measured, **facts}, warnings)


def effective(runner: OpenVinoRunner, example: Feed, hint: str) -> dict[str, Any]:
    """What the compiled model computes in, as it reports: the precision, and how many layers have which."""
    compiled = runner.compiled(example)
    layers: Counter[str] = Counter()
    for operation in compiled.get_runtime_model().get_ops():
        info = operation.get_rt_info()
        if "layerType" in info and info["layerType"].value in COMPUTE:
            kind = info["runtimePrecision"].value
            layers[NAMES.get(kind, kind)] += 1
    chosen = compiled.get_property(HINT).get_type_name()
    return {
        "hint": hint,
        "effective": NAMES.get(chosen, chosen),
        "native": has_bf16(),
        "layers": dict(sorted(layers.items())),
    }


def _warnings(precision: str, hint: str, facts: dict[str, Any]) -> list[str]:
    if hint != "bf16":
        return [] if facts["native"] else [f"{precision}: this CPU has no bf16, so what is not int8 stays fp32"]
    if facts["effective"] != "bf16":
        return [
            f"{precision}: OpenVINO ignores bf16 on this CPU and computes in {facts['effective']}; the certificate "
            "is about that"
        ]
    if not facts["native"]:
        return [f"{precision}: this CPU has no bf16 arithmetic; OpenVINO emulates it, which is slow"]
    return []
