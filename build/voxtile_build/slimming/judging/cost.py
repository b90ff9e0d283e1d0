"""What a tile costs a network: parameters, operations, and seconds, those of several networks measured in turns."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from voxtile.tiling.extract import tta_flips
from voxtile_build.arrays import Feed
from voxtile_build.certificate.distillation import Cost
from voxtile_build.evaluation.tiles import tile_inputs
from voxtile_build.evaluation.whole_scan import torch_runner
from voxtile_build.graph.wrapper import Wrapper, example_inputs
from voxtile_build.networks.fitting_sizes import without_values
from voxtile_build.slimming.judging.agreement import student_runner
from voxtile_build.slimming.teacher import Teacher
from voxtile_build.spec.spec import Spec

GIGA = 1e9
PYTORCH = "PyTorch fp32"
LEAST_ROUNDS, MOST_ROUNDS = 3, 30
MOST_SECONDS = 60.0
"""For all rounds together; a round that has begun is finished, and LEAST_ROUNDS are always run."""


def costs(
    teacher: Teacher, network: nn.Module, student: Spec, *, most_seconds: float = MOST_SECONDS
) -> tuple[Cost, Cost]:
    """What a tile costs the teacher, in all networks and mirrored passes, and the student.

    Of the teacher's networks, which have one shape, the first is run in PyTorch, once, and counts for all.

    Args:
        teacher: with its engine.
        network: the student, in evaluation mode.
        student: its spec.
        most_seconds: for measuring, see `seconds_in_turns`.
    """
    networks, passes, scoring = len(teacher.networks), len(teacher.mirrorings), teacher.scoring
    first, feed = teacher.networks[0].load(), tile_feed(scoring)
    engine = f"{teacher.engine} {teacher.precision}"
    theirs = torch_runner(Wrapper(first, scoring).eval())
    ours = student_runner(network, student, scoring)
    seconds = seconds_in_turns(
        {"teacher": partial(theirs, feed), "student": partial(ours, feed), engine: partial(teacher.run, feed)},
        most_seconds=most_seconds,
    )
    slow = networks * passes * seconds["teacher"]
    return (
        cost_of(first, scoring, networks=networks, passes=passes).model_copy(
            update={"seconds": {PYTORCH: slow, engine: seconds[engine]}}
        ),
        cost_of(network, student, passes=len(tta_flips(student.tiling.mirror_axes))).model_copy(
            update={"seconds": {PYTORCH: seconds["student"]}}
        ),
    )


def cost_of(network: nn.Module, spec: Spec, *, networks: int = 1, passes: int = 1) -> Cost:
    """What a tile costs, without seconds.

    Args:
        network: one of the networks; the others have the same shape.
        spec: the model.
        networks: how many there are.
        passes: how often each runs for a tile.
    """
    operations = _operations(network, spec)
    return Cost(
        parameters=networks * sum(one.numel() for one in network.parameters()),
        gflop=None if operations is None else networks * passes * operations / GIGA,
    )


def _operations(network: nn.Module, spec: Spec) -> int | None:
    """Additions and multiplications of convolutions and products for one tile; None where they cannot be counted."""
    shape = (1, len(spec.input.channels), *spec.tiling.roi_size)
    for device in ("meta", "cpu"):  # the first computes nothing; networks in files take the second alone
        try:
            module = without_values(network) if device == "meta" else network
            with torch.inference_mode(), FlopCounterMode(display=False) as counter:
                module(torch.zeros(shape, device=device))
        except Exception:  # networks raise many kinds of errors
            continue
        return int(counter.get_total_flops()) or None
    return None


def tile_feed(spec: Spec) -> Feed:
    """A tile of zeros, as an engine is given it."""
    roi, *statistics = (one.numpy() for one in example_inputs(spec, 1))
    return tile_inputs(spec, roi, statistics[0] if statistics else roi)


def seconds_in_turns(
    runs: Mapping[str, Callable[[], object]],
    *,
    most_seconds: float = MOST_SECONDS,
    rounds: Sequence[int] = (LEAST_ROUNDS, MOST_ROUNDS),
) -> dict[str, float]:
    """The seconds of the fastest run of each, all of them run in turns, so that a busy machine slows all alike.

    Args:
        runs: by name; each is run once more before anything is measured.
        most_seconds: after these no further round begins.
        rounds: how many at least, and at most.
    """
    for run in runs.values():
        run()
    fastest = dict.fromkeys(runs, math.inf)
    started = time.perf_counter()
    for number in range(rounds[1]):
        if number >= rounds[0] and time.perf_counter() - started > most_seconds:
            break
        for name, run in runs.items():
            begun = time.perf_counter()
            run()
            fastest[name] = min(fastest[name], time.perf_counter() - begun)
    return fastest
