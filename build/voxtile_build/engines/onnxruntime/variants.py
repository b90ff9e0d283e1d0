"""The ONNX graph in mixed fp16, static int8 and dynamic int8, for ONNX Runtime and for TensorRT."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from voxtile_build.arrays import Runner
from voxtile_build.engines.base import Compiled
from voxtile_build.engines.onnxruntime.runner import OnnxRuntimeRunner
from voxtile_build.errors import AcceptanceError
from voxtile_build.evaluation.metrics import probabilities
from voxtile_build.evaluation.whole_scan import torch_runner
from voxtile_build.graph.graphs import Graphs
from voxtile_build.graph.torch_to_onnx import save
from voxtile_build.precision.mixed_precision import low_nodes, out_of_range, preparing_nodes, refuse_overflow, to_mixed
from voxtile_build.precision.quantize_qdq import quantizable, quantize_dynamic, quantize_qdq
from voxtile_build.precision.ranges import tensor_ranges
from voxtile_build.precision.run_stepwise import run_stepwise

Array = NDArray[Any]

# A probability that is off by more has lost its voxel, whatever the mask's figures over all voxels say.
MAX_ROUNDING = 0.5


def mixed_precision(graphs: Graphs, kept: frozenset[str] = frozenset()) -> tuple[ModelProto, dict[str, Any]]:
    """The lean graph in mixed fp16, and the facts of it.

    Layers of which brighter scans would make an overflow stay in fp32, and so do those in `kept`.
    Raises Fp16OverflowError with the layer's name where the calibration tiles themselves overflow it.
    """
    ranges, preparing = tensor_ranges(graphs.base, graphs.calibration.feeds), preparing_nodes(graphs.base)
    refuse_overflow(graphs.base, ranges, kept | preparing)
    near = frozenset(out_of_range(graphs.base, ranges)) & low_nodes(graphs.base, kept | preparing)
    facts = {
        "kept": sorted(kept),
        "kept_near_overflow": sorted(near),
        "calibration": graphs.calibration.as_dict(),
    }
    return to_mixed(graphs.base, "fp16", kept | near | preparing), facts


def compile_fp16(graphs: Graphs, folder: Path, kept: frozenset[str] = frozenset()) -> Compiled:
    """model.onnx in mixed fp16.

    ONNX Runtime on a CPU computes fp16 in fp32, so that neither rounding nor overflow would show: the graph is
    run node by node on one tile first. Raises Fp16OverflowError, or AcceptanceError where that tile is lost.
    """
    model, facts = mixed_precision(graphs, kept)
    facts["rounding"] = float(f"{_rounding(graphs, model):.3g}")
    return opened(model, folder, "fp16", graphs, facts)


def stepwise_runner(model: ModelProto) -> Runner:
    """Runs `model` node by node, each value rounded to its type as on a GPU: slow, and true."""

    def run(inputs: Any) -> Array:
        with np.errstate(invalid="ignore", over="ignore"):
            return run_stepwise(model, [inputs])[0]["scores"]

    return run


def compile_int8(graphs: Graphs, folder: Path, kept: frozenset[str] = frozenset()) -> Compiled:
    """model.onnx with Q/DQ pairs around its convolutions. Raises QuantizationError where none is left."""
    model = quantize_qdq(graphs.base, graphs.calibration.feeds, kept)
    facts = {
        "int8_convolutions": len(quantizable(graphs.base, kept)),
        "kept": sorted(kept),
        "calibration": graphs.calibration.as_dict(),
    }
    return opened(model, folder, "int8", graphs, facts)


def compile_int8_dynamic(graphs: Graphs, folder: Path, _: frozenset[str] = frozenset()) -> Compiled:
    """model.onnx with int8 weights of its matrix products. Raises QuantizationError where it has none."""
    return opened(quantize_dynamic(graphs.base), folder, "int8-dynamic", graphs, {})


def reopen(compiled: Compiled, files: tuple[Path, ...], graphs: Graphs) -> Compiled:
    """The same engine from where its files lie now."""
    return replace(compiled, files=files, run=OnnxRuntimeRunner(files[0], graphs.spec.serving.threads))


def opened(model: ModelProto, folder: Path, precision: str, graphs: Graphs, facts: dict[str, Any]) -> Compiled:
    files = save(model, folder / "model.onnx")
    runner = OnnxRuntimeRunner(files[0], graphs.spec.serving.threads)
    return Compiled(files, precision, runner, {}, facts, tuple(graphs.notes))


def _rounding(graphs: Graphs, model: ModelProto) -> float:
    """Largest |Δ| of the probabilities of one tile, every value between rounded to its own type."""
    feed, output = graphs.calibration.example, graphs.spec.output
    found, expected = stepwise_runner(model)(feed)[0], torch_runner(graphs.wrapper)(feed)[0]
    error = float(np.abs(probabilities(found, output) - probabilities(expected, output)).max())
    if not np.isfinite(found).all() or (output.scores != "labels" and len(found) > 1 and error > MAX_ROUNDING):
        raise AcceptanceError(
            f"{graphs.spec.name}: fp16, each value rounded as a GPU rounds it, is off by {error:.3g} on a calibration "
            "tile; use precision 'auto' or 'fp32'"
        )
    return error
