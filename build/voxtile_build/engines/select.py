"""An engine in the precision that the spec asks for, found by search where that is `auto`."""

from __future__ import annotations

import functools
import itertools
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from onnx import ModelProto

from voxtile_build.arrays import Runner
from voxtile_build.engines.base import Compiled, Engine, find_engine
from voxtile_build.engines.onnxruntime import variants as onnxruntime_precision
from voxtile_build.engines.openvino import variants as openvino_precision
from voxtile_build.engines.tensorrt.variants import compile_plan, require_gpu
from voxtile_build.errors import EngineError
from voxtile_build.evaluation.metrics import changed_voxels, dice, mask_names, masks
from voxtile_build.evaluation.whole_scan import segment
from voxtile_build.graph.graphs import COMPOSED, Graphs
from voxtile_build.precision.ranges import tensor_ranges
from voxtile_build.precision.search import Acceptance, Candidate, Figures, SearchResult, rank_layers, search
from voxtile_build.precision.sensitivity import rank_int8
from voxtile_build.spec.spec import Spec

# Limits such as 1 - 0.995 are a hair off in binary.
HAIR = 1e-12
TIMED_RUNS = 2


@dataclass(frozen=True)
class Variant:
    """One precision of one engine: how it is built with some layers kept higher, and which to keep first."""

    precision: str
    build: Callable[[Graphs, Path, frozenset[str]], Compiled]
    rank: Callable[[Graphs], Sequence[str]] = lambda graphs: ()


def _fp32(engine: str) -> Variant:
    def build(graphs: Graphs, folder: Path, _: frozenset[str]) -> Compiled:
        onnx_file = graphs.fused_file if engine == COMPOSED else graphs.onnx_file
        compiled = find_engine(engine).compile(onnx_file, folder, graphs.spec)
        return replace(compiled, notes=(*graphs.notes, *compiled.notes))

    return Variant("fp32", build)


def _rounded_fp16(graphs: Graphs, folder: Path, kept: frozenset[str]) -> Compiled:
    """The fp16 graph run as a GPU would round it, for the search to judge; no CPU engine would tell."""
    model, facts = onnxruntime_precision.mixed_precision(graphs, kept)
    compiled = onnxruntime_precision.opened(model, folder, "fp16", graphs, facts)
    return replace(compiled, run=onnxruntime_precision.stepwise_runner(model))


def _by_int8(graphs: Graphs) -> Sequence[str]:
    return _ranked(graphs.base, graphs, ("Conv",))


def _by_int8_composed(graphs: Graphs) -> Sequence[str]:
    return _ranked(graphs.fused, graphs, ("Conv", "ConvTranspose"))


def _ranked(model: ModelProto, graphs: Graphs, operators: Collection[str]) -> Sequence[str]:
    example = graphs.calibration.example
    return rank_int8(model, example, tensor_ranges(model, [example]), operators)


def _by_fp16(graphs: Graphs) -> Sequence[str]:
    ranges = tensor_ranges(graphs.base, graphs.calibration.feeds)
    return rank_layers(graphs.base, [graphs.calibration.example], ranges)


VARIANTS = {
    "openvino": (
        Variant("int8", openvino_precision.compile_int8, _by_int8_composed),
        Variant("bf16", openvino_precision.compile_bf16),
        _fp32("openvino"),
    ),
    "onnxruntime": (
        Variant("int8", onnxruntime_precision.compile_int8, _by_int8),
        Variant("int8-dynamic", onnxruntime_precision.compile_int8_dynamic),
        Variant("fp16", onnxruntime_precision.compile_fp16),
        _fp32("onnxruntime"),
    ),
}
# fp16 gains on GPUs alone; there ONNX Runtime has no int8 convolution.
CPU_SEARCH = {
    engine: tuple(variant for variant in variants if variant.precision != "fp16")
    for engine, variants in VARIANTS.items()
}
GPU_SEARCH = (Variant("fp16", _rounded_fp16, _by_fp16), _fp32("onnxruntime"))
REOPEN = {"openvino": openvino_precision.reopen, "onnxruntime": onnxruntime_precision.reopen}


def require_buildable(engine: Engine, spec: Spec) -> None:
    """Raises EngineError, before anything is built, where this machine cannot build the engine."""
    if engine.name == "tensorrt":
        require_gpu(spec)


def compile_at(engine: Engine, graphs: Graphs, folder: Path) -> Compiled:
    """`engine` in the precision that the spec asks for, its files in `folder`.

    Raises EngineError: a value does not fit fp16 (with the layer's name), `auto` finds nothing that keeps the
    segmentation, or the engine refuses the graph.
    """
    wanted = graphs.spec.precision.of(engine.name)
    if engine.name == "tensorrt":
        compiled = _plan(graphs, folder, wanted)
    elif wanted == "auto":
        compiled = _found(engine.name, graphs, folder)
    else:
        variant = next(variant for variant in VARIANTS[engine.name] if variant.precision == wanted)
        compiled = variant.build(graphs, folder, frozenset())
    return _with_note(compiled, graphs)


def _with_note(compiled: Compiled, graphs: Graphs) -> Compiled:
    if not {"calibration", "search"} & set(compiled.facts) or not graphs.calibration.generated:
        return compiled
    note = (
        f"{compiled.precision}: calibrated on a generated phantom, because the spec names no scans in "
        "precision.calibration; real scans may reach further"
    )
    return replace(compiled, notes=(*compiled.notes, note))


def _plan(graphs: Graphs, folder: Path, wanted: str) -> Compiled:
    if wanted != "auto":
        return compile_plan(graphs, folder, wanted)
    with tempfile.TemporaryDirectory() as work:
        result, order = _searched(GPU_SEARCH, graphs, Path(work), timed=False)
    compiled = compile_plan(graphs, folder, result.accepted.precision, frozenset(result.accepted.kept))
    return _with_search(compiled, result, order)


def _found(engine: str, graphs: Graphs, folder: Path) -> Compiled:
    """The fastest variant that keeps the segmentation of the calibration scans."""
    on_gpu = engine == "onnxruntime" and graphs.spec.serving.gpus != "none"
    with tempfile.TemporaryDirectory(dir=folder.parent.parent) as work:
        variants = GPU_SEARCH if on_gpu else CPU_SEARCH[engine]
        result, order = _searched(variants, graphs, Path(work), timed=not on_gpu)
        files = tuple(Path(shutil.move(file, folder / file.name)) for file in result.engine.files)
        return _with_search(REOPEN[engine](result.engine, files, graphs), result, order)


def _with_search(compiled: Compiled, result: SearchResult[Compiled], order: Sequence[str]) -> Compiled:
    return replace(compiled, facts={**compiled.facts, "search": {"order": list(order), **result.as_dict()}})


def _searched(
    variants: Sequence[Variant], graphs: Graphs, work: Path, *, timed: bool
) -> tuple[SearchResult[Compiled], tuple[str, ...]]:
    """The search's result, and the precisions in the order in which it went through them."""
    numbers = itertools.count()

    def candidate(variant: Variant) -> Candidate[Compiled]:
        @functools.cache
        def build(kept: frozenset[str]) -> Compiled:
            attempt = work / str(next(numbers))
            attempt.mkdir()
            return variant.build(graphs, attempt, kept)

        return Candidate(variant.precision, build, lambda: variant.rank(graphs))

    candidates = [candidate(variant) for variant in variants]
    if timed:
        candidates = _fastest_first(candidates, graphs)
    limits = graphs.spec.acceptance
    acceptance = Acceptance(1 - limits.min_dice + HAIR, limits.max_changed)
    result = search(candidates, lambda compiled: calibration_figures(graphs, compiled.run), acceptance)
    return result, tuple(candidate.precision for candidate in candidates)


def _fastest_first(candidates: Sequence[Candidate[Compiled]], graphs: Graphs) -> list[Candidate[Compiled]]:
    """By the seconds of one tile; one that cannot be built plain keeps its place among the faster ones."""
    known: dict[str, float] = {}
    for candidate in candidates:
        try:
            known[candidate.precision] = _seconds(candidate.build(frozenset()).run, graphs)
        except EngineError:
            known[candidate.precision] = 0.0
    return sorted(candidates, key=lambda candidate: known[candidate.precision])


def _seconds(run: Runner, graphs: Graphs) -> float:
    run(graphs.calibration.example)
    taken = []
    for _ in range(TIMED_RUNS):
        begun = time.perf_counter()
        run(graphs.calibration.example)
        taken.append(time.perf_counter() - begun)
    return min(taken)


def calibration_figures(graphs: Graphs, run: Runner) -> Figures:
    """The worst Dice of each label and the largest share of changed voxels over the calibration scans."""
    spec = graphs.spec
    worst: dict[str, float] = dict.fromkeys(mask_names(spec.output), 1.0)
    share = 0.0
    for scan, expected in zip(graphs.calibration.scans, graphs.expected, strict=True):
        found = masks(segment(scan, spec, run, spec.serving.max_batch_size), spec.output)
        wanted = masks(expected, spec.output)
        for name, *pair in zip(worst, wanted, found, strict=True):
            similarity = dice(*pair)
            worst[name] = min(worst[name], 1.0 if similarity is None else similarity)
        share = max(share, changed_voxels(wanted, found) / found[0].size)
    return Figures(worst, share)
