"""What a build refuses before it makes anything: a spec that does not fit its engines, its network or its weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from voxtile_build.certificate.distillation import student_of
from voxtile_build.engines import find_engine
from voxtile_build.engines.base import Engine
from voxtile_build.errors import EngineError
from voxtile_build.evaluation.region_order import require_order
from voxtile_build.graph.wrapper import tried_sizes, wrap
from voxtile_build.importers.network import load_network, untrained_network, with_head
from voxtile_build.networks.fitting_sizes import shape_of_scores, without_values
from voxtile_build.networks.free_sizes import require_free_sizes
from voxtile_build.spec.spec import Spec


def check_tables(spec: Spec, engines: Sequence[Engine]) -> None:
    """Check the tables of a spec against one another and against its engines.

    Raises:
        SpecError: they contradict one another.
    """
    require_free_sizes(spec)
    require_order(spec)
    for engine in engines:
        engine.require_input(spec)


def check_spec(spec: Spec) -> tuple[str, ...]:
    """Check a spec as a build does, without building: its tables, its network, and those of its files that are there.

    Returns:
        What could not be checked, a sentence each.

    Raises:
        BuildError: what the build would say.
    """
    engines = [find_engine(name) for name in spec.serving.engines]
    check_tables(spec, engines)
    return (*_network_unchecked(spec), *_student(spec), *_scans_missing(spec), *_engines_lacking(spec, engines))


def _student(spec: Spec) -> Iterator[str]:
    """What nobody can say of a student without the report of its distillation."""
    if spec.distillation is None:
        return
    report = spec.distillation.report
    if report.exists():
        student_of(spec)
    else:
        yield f"distillation.report: {report} is not there, so nobody knows how far the student agrees with its teacher"


def _network_unchecked(spec: Spec) -> Iterator[str]:
    file = spec.network.file
    if file is not None:
        if file.exists():
            wrap(load_network(spec), spec)
        else:
            yield f"network.file: {file} is not there, and nothing is known of the network without it"
        return
    weights = spec.weights
    there = weights is not None and weights.file.exists()
    network = load_network(spec) if there else with_head(untrained_network(spec), spec)
    if not there and any(True for _ in network.parameters()):
        yield (
            "weights: missing; the build needs [weights] with file and sha256"
            if weights is None
            else (f"weights.file: {weights.file} is not there, so nobody knows whether it fits the network")
        )
    _try(network, spec)


def _try(network: nn.Module, spec: Spec) -> None:
    """Try the network's shapes; where they do not fit, or values count, run it as the build does, and say the same."""
    if spec.network.output == "logits" and _fits(network, spec):
        return
    wrap(network, spec)


def _fits(network: nn.Module, spec: Spec) -> bool:
    """Whether the network gives scores of the right shape for every size that a build tries."""
    empty, channels, classes = without_values(network), len(spec.input.channels), len(spec.output.labels)
    return all(shape_of_scores(empty, channels, sizes) == (1, classes, *sizes) for sizes in tried_sizes(spec))


def _scans_missing(spec: Spec) -> Iterator[str]:
    for key, scans in (
        ("acceptance.scans", spec.acceptance.scans),
        ("precision.calibration", spec.precision.calibration),
    ):
        missing = [str(file) for scan in scans for file in scan if not file.exists()]
        if missing:
            yield f"{key}: not there: {', '.join(missing)}"


def _engines_lacking(spec: Spec, engines: Sequence[Engine]) -> Iterator[str]:
    """Engines that another machine must build."""
    for engine in engines:
        try:
            engine.require_buildable(spec)
        except EngineError as error:
            yield f"serving.engines: {error}"
