"""The precisions of ONNX Runtime: the fp32 file as it is, mixed fp16, static int8 and dynamic int8."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from voxtile_build.engines.base import Compiled, Variant
from voxtile_build.engines.onnxruntime.runner import FILE, OnnxRuntimeRunner
from voxtile_build.errors import AcceptanceError
from voxtile_build.evaluation.evaluate import as_votes, error_and_spread
from voxtile_build.evaluation.metrics import probabilities
from voxtile_build.evaluation.whole_scan import torch_runner
from voxtile_build.graph.graphs import BASE, FP32, Graphs
from voxtile_build.graph.torch_to_onnx import save
from voxtile_build.precision.quantize_qdq import quantize_dynamic
from voxtile_build.precision.reduced import fp16_graph, int8_graph, layers_by_fp16, layers_by_int8, stepwise_runner
from voxtile_build.spec.spec import Spec

MAX_ROUNDING = 0.5
"""The root mean square of what rounding costs, as a share of the scores' spread; constant scores reach 1."""


def compile_fp32(graphs: Graphs, spec: Spec, folder: Path, _: frozenset[str] = frozenset()) -> Compiled:
    """The fp32 file, and the weights beside it, copied."""
    files = copy_files(graphs.files, folder)
    return Compiled(files, "fp32", OnnxRuntimeRunner(files[0], spec.serving.threads), (BASE, FP32))


def compile_fp16(graphs: Graphs, spec: Spec, folder: Path, kept: frozenset[str] = frozenset()) -> Compiled:
    """model.onnx in mixed fp16.

    ONNX Runtime on a CPU computes fp16 in fp32, so that neither rounding nor overflow shows. Therefore the graph is
    run node by node on one tile first.

    Raises:
        Fp16OverflowError: a layer overflows.
        AcceptanceError: the rounded tile is useless.
    """
    model, facts = fp16_graph(graphs, kept)
    facts["rounding"] = float(f"{_rounding(graphs, model):.3g}")
    return _saved(model, spec, folder, "fp16", facts)


def compile_fp16_for_gpu(graphs: Graphs, spec: Spec, folder: Path, kept: frozenset[str] = frozenset()) -> Compiled:
    """model.onnx in mixed fp16, run as a GPU rounds it; the engine on this CPU would not show the rounding."""
    model, facts = fp16_graph(graphs, kept)
    return replace(_saved(model, spec, folder, "fp16", facts), run=stepwise_runner(model))


def compile_int8(graphs: Graphs, spec: Spec, folder: Path, kept: frozenset[str] = frozenset()) -> Compiled:
    """model.onnx with Q/DQ pairs around its convolutions.

    Raises:
        QuantizationError: no convolution is left.
    """
    model, facts = int8_graph(graphs, kept)
    return _saved(model, spec, folder, "int8", facts)


def compile_int8_dynamic(graphs: Graphs, spec: Spec, folder: Path, _: frozenset[str] = frozenset()) -> Compiled:
    """model.onnx with int8 weights of its matrix products.

    Raises:
        QuantizationError: it has no matrix product by a constant.
    """
    return _saved(quantize_dynamic(graphs.base), spec, folder, "int8-dynamic", {})


FP32_VARIANT = Variant("fp32", compile_fp32)
CPU_SEARCH = (
    Variant("int8", compile_int8, layers_by_int8),
    Variant("int8-dynamic", compile_int8_dynamic),
    FP32_VARIANT,
)
GPU_SEARCH = (Variant("fp16", compile_fp16_for_gpu, layers_by_fp16), FP32_VARIANT)
VARIANTS = (*CPU_SEARCH, Variant("fp16", compile_fp16))


def copy_files(files: Sequence[Path], folder: Path) -> tuple[Path, ...]:
    """Copies an ONNX file to `folder`/model.onnx, and its files of weights under their names: the graph names them."""
    graph, *weights = files
    return shutil.copyfile(graph, folder / FILE), *(shutil.copyfile(file, folder / file.name) for file in weights)


def _saved(model: ModelProto, spec: Spec, folder: Path, precision: str, facts: dict[str, Any]) -> Compiled:
    files = save(model, folder / FILE)
    return Compiled(files, precision, OnnxRuntimeRunner(files[0], spec.serving.threads), (BASE,), facts=facts)


def _rounding(graphs: Graphs, model: ModelProto) -> float:
    """Largest |Δ| of the probabilities of one tile, with every value between rounded to its own type.

    Raises:
        AcceptanceError: the scores of the tile are useless as a whole.
    """
    feed, output = graphs.calibration.example, graphs.spec.output
    found, expected = stepwise_runner(model)(feed)[0], torch_runner(graphs.wrapper)(feed)[0]
    together, spread = error_and_spread(as_votes(expected, output), as_votes(found, output), output)
    if not together <= MAX_ROUNDING * spread:  # NaN too
        raise AcceptanceError(
            f"{graphs.spec.name}: fp16, each value rounded as a GPU rounds it, is off by {together / spread:.3g} of "
            "the scores' spread on a calibration tile; use precision 'auto' or 'fp32'"
        )
    return float(np.abs(probabilities(found, output) - probabilities(expected, output)).max())
