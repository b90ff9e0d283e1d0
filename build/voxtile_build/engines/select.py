"""Builds an engine in the precision that the spec asks for; precision `auto` is searched for. Names no engine."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from voxtile_build.arrays import Runner
from voxtile_build.engines.base import Compiled, Engine, Variant
from voxtile_build.evaluation.metrics import changed_voxels, dice, mask_names, masks
from voxtile_build.evaluation.summary import SEEN_VOXELS, counts, first_of
from voxtile_build.evaluation.whole_scan import segment
from voxtile_build.graph.graphs import Graphs
from voxtile_build.precision.search import Acceptance, Candidate, Metrics, SearchResult, search
from voxtile_build.spec.engines import AUTO
from voxtile_build.spec.spec import Spec

ROUNDING = 1e-12
"""Limits such as 1 - 0.995 are off by this much in binary."""

FP32 = "fp32"


def compile_at(engine: Engine, graphs: Graphs, spec: Spec, folder: Path) -> Compiled:
    """The engine in the precision that the spec asks for, its files in `folder`.

    Args:
        engine: which engine.
        graphs: what it is made of.
        spec: the model; it may differ from that of the graphs in what they do not depend on.
        folder: the entry's version folder.

    Raises:
        EngineError: a value does not fit fp16 (the message names the layer), `auto` finds nothing that keeps the
            segmentation, or the engine refuses the graph.
        AcceptanceError: fp16 loses a calibration tile.
    """
    wanted = spec.precision.of(engine.name)
    if wanted == AUTO:
        compiled = _searched(engine, graphs, spec, folder)
    else:
        variant = next(variant for variant in engine.variants() if variant.precision == wanted)
        compiled = variant.build(graphs, spec, folder, frozenset())
    warnings = (*graphs.warnings_of(compiled.graphs), *compiled.warnings, *_calibration_warnings(compiled, graphs))
    return replace(compiled, warnings=warnings)


def _calibration_warnings(compiled: Compiled, graphs: Graphs) -> tuple[str, ...]:
    if not {"calibration", "search"} & set(compiled.facts) or not graphs.calibration.generated:
        return ()
    return (
        f"{compiled.precision}: calibrated on a generated phantom, because the spec names no scans in "
        "precision.calibration; the values of real scans may have a wider range",
    )


def _searched(engine: Engine, graphs: Graphs, spec: Spec, folder: Path) -> Compiled:
    """The first variant that keeps the segmentation of the calibration scans."""
    wanted, warnings = _provable(engine.search(spec), graphs, spec)
    # On the file system of the entry, so that the files found are moved, not copied.
    with tempfile.TemporaryDirectory(dir=folder.parent.parent) as work:
        result, seconds = _search(wanted, graphs, spec, Path(work))
        compiled = engine.settle(result.engine, frozenset(result.accepted.kept), graphs, spec, folder)
    order = [variant.precision for variant in wanted]
    facts = {**compiled.facts, "search": {"order": order, **result.as_dict()}}
    seconds |= compiled.seconds
    return replace(compiled, facts=facts, seconds=seconds, warnings=(*compiled.warnings, *warnings))


def _provable(wanted: Sequence[Variant], graphs: Graphs, spec: Spec) -> tuple[Sequence[Variant], tuple[str, ...]]:
    """The search without what the calibration scans cannot prove, and a warning for what was left out.

    Of a label that they do not show, the masks say nothing, so that only fp32 remains.
    """
    shown = sum(
        masks(scores, spec.output).reshape(len(mask_names(spec.output)), -1).sum(1) for scores in graphs.expected
    )
    unseen = [name for name, voxels in zip(mask_names(spec.output), shown, strict=True) if voxels < SEEN_VOXELS]
    plain = tuple(variant for variant in wanted if variant.precision == FP32)
    if not unseen or spec.acceptance.takes_unseen_labels or not plain:
        return wanted, ()
    warning = (
        f"auto: fp32, because the calibration scans show fewer than {SEEN_VOXELS} voxels of {first_of(unseen)}; name "
        "scans that show every label in precision.calibration, or write allow_unseen_labels = true in [acceptance]"
    )
    return plain, (warning,)


def _search(
    wanted: Sequence[Variant], graphs: Graphs, spec: Spec, work: Path
) -> tuple[SearchResult[Compiled], dict[str, float]]:
    """The search's result, and how long each attempt took for the calibration scans.

    The seconds are told and decide nothing: the same network gives the same engine on a busy machine.
    """
    numbers, seconds = itertools.count(), dict[str, float]()

    def candidate(variant: Variant) -> Candidate[Compiled]:
        def build(kept: frozenset[str]) -> Compiled:
            attempt = work / str(next(numbers))
            attempt.mkdir()
            return variant.build(graphs, spec, attempt, kept)

        return Candidate(variant.precision, build, lambda: variant.rank(graphs))

    def measure(compiled: Compiled) -> Metrics:
        started = time.perf_counter()
        metrics = calibration_metrics(graphs, compiled.run)
        seconds[f"auto {len(seconds) + 1}: {compiled.precision}"] = time.perf_counter() - started
        return metrics

    limits = spec.acceptance
    acceptance = Acceptance(1 - limits.min_dice + ROUNDING, limits.max_changed)
    result = search([candidate(variant) for variant in wanted], measure, acceptance, _remove_files)
    return result, seconds


def _remove_files(compiled: Compiled) -> None:
    """Of an attempt that is not needed any more: a search makes a dozen, each as large as the network."""
    for file in compiled.files:
        file.unlink(missing_ok=True)


def calibration_metrics(graphs: Graphs, run: Runner) -> Metrics:
    """The worst Dice of each label that counts, and the largest share of changed voxels, over the calibration scans."""
    spec = graphs.spec
    worst: dict[str, float] = dict.fromkeys(mask_names(spec.output), 1.0)
    share = 0.0
    for scan, expected in zip(graphs.calibration.scans, graphs.expected, strict=True):
        found = masks(segment(scan, spec, run, spec.serving.max_batch_size), spec.output)
        wanted = masks(expected, spec.output)
        for name, one, other in zip(worst, wanted, found, strict=True):
            similarity = dice(one, other)
            if similarity is not None and counts(int(one.sum()), int((one != other).sum())):
                worst[name] = min(worst[name], similarity)
        share = max(share, changed_voxels(wanted, found) / found[0].size)
    return Metrics(worst, share)
