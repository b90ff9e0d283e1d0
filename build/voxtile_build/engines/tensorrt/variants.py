"""The precisions of TensorRT: which graph a plan of each is built from."""

from __future__ import annotations

import importlib
import time
from functools import partial
from pathlib import Path

import onnx

from voxtile_build.engines.base import Compiled, Variant
from voxtile_build.engines.gpu import served_gpus
from voxtile_build.engines.shapes import serving_shapes
from voxtile_build.engines.tensorrt.fits import FILE, MODULE, as_facts
from voxtile_build.engines.tensorrt.layers import LISTING, layers_by_type
from voxtile_build.engines.tensorrt.network import PLAIN, Precision
from voxtile_build.engines.tensorrt.plan import build_plan
from voxtile_build.engines.tensorrt.runner import PlanRunner, use_gpu
from voxtile_build.engines.tensorrt.timings import timings_file
from voxtile_build.evaluation.whole_scan import torch_runner
from voxtile_build.graph.graphs import BASE, FP32, Graphs
from voxtile_build.precision.reduced import (
    Facts,
    bf16_graph,
    fp16_graph,
    int8_graph,
    layers_by_fp16,
    stepwise_runner,
)
from voxtile_build.spec.spec import Spec

GRAPHS = {"bf16": bf16_graph, "fp16": fp16_graph, "int8": int8_graph}


def compile_plan(
    graphs: Graphs, spec: Spec, folder: Path, kept: frozenset[str] = frozenset(), *, precision: Precision
) -> Compiled:
    """model.plan for the GPU of this machine, and a listing of its layers; the certificate names the GPU.

    Raises:
        EngineError: the parser or the builder refuses the graph.
    """
    trt = importlib.import_module(MODULE)
    device, gpu = next(iter(served_gpus(spec.serving.gpus).items()))
    compatibility = spec.serving.hardware_compatibility
    model, facts = plan_graph(graphs, precision, kept)
    shapes = serving_shapes(model, spec.serving)
    use_gpu(device)
    started = time.perf_counter()
    plan = build_plan(
        trt, model.SerializeToString(), shapes, precision, kept_higher(facts), compatibility,
        timings_file(gpu, trt.__version__),
    )  # fmt: skip
    seconds = {f"plan, {'with' if plan.timed_before else 'without'} earlier timings": time.perf_counter() - started}
    run = PlanRunner(trt, plan.content, device)
    information = run.information(shapes)
    file = folder / FILE
    file.write_bytes(plan.content)
    (folder / LISTING).write_text(information, encoding="utf-8")
    made_of = (BASE, FP32) if precision in PLAIN else (BASE,)
    facts = {**facts, "layers": layers_by_type(information), **as_facts(gpu, trt.__version__, compatibility)}
    return Compiled((file,), precision, run, made_of, facts=facts, warnings=plan.warnings, seconds=seconds)


def plan_graph(
    graphs: Graphs, precision: Precision, kept: frozenset[str] = frozenset()
) -> tuple[onnx.ModelProto, Facts]:
    """The graph that `precision` is written into, which is where TensorRT reads it from, and facts about it."""
    if precision in PLAIN:
        return onnx.load(graphs.files[0]), {}
    return GRAPHS[precision](graphs, kept)


def kept_higher(facts: Facts) -> frozenset[str]:
    """Names of the ONNX nodes that keep a higher precision than the plan's."""
    return frozenset((*facts.get("kept", ()), *facts.get("kept_near_overflow", ())))


def _rounded_fp16(graphs: Graphs, _: Spec, __: Path, kept: frozenset[str]) -> Compiled:
    model, facts = fp16_graph(graphs, kept)
    return Compiled((), "fp16", stepwise_runner(model), (BASE,), facts=facts)


def _plain_fp32(graphs: Graphs, _: Spec, __: Path, ___: frozenset[str]) -> Compiled:
    return Compiled((), "fp32", torch_runner(graphs.wrapper), (BASE, FP32))


PRECISIONS: tuple[Precision, ...] = ("fp32", "tf32", "bf16", "fp16", "int8")
VARIANTS = tuple(Variant(precision, partial(compile_plan, precision=precision)) for precision in PRECISIONS)
ROUNDED = (Variant("fp16", _rounded_fp16, layers_by_fp16), Variant("fp32", _plain_fp32))
"""What precision `auto` tries, without building a plan."""
