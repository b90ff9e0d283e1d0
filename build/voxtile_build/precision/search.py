"""The search for the fastest precision that keeps the segmentation. Knows no engine: it builds and measures by call.

It starts from the fastest candidate, measures it against fp32, and puts the most sensitive layers back into the next
higher precision until the acceptance figures hold: how many is found by doubling, then by halving the gap; then it
tries to do without some of them again. A candidate that fails with half of its layers back gives way to the next.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray

from voxtile_build.arrays import Feed
from voxtile_build.errors import EngineError
from voxtile_build.precision.mixed_precision import COMPUTE, Low, first_overflow, low_nodes, refuse_overflow, to_mixed
from voxtile_build.precision.run_stepwise import run_stepwise
from voxtile_build.sessions import run_graph

Engine = TypeVar("Engine")

# With more than this share of the layers back, the next candidate is as fast and simpler.
MAX_SHARE_BACK = 0.5
# Variants that are tried with one layer less than was found to be enough: each is built and measured like any other.
MOST_SPARED = 4


@dataclass(frozen=True)
class Figures:
    """An engine's masks against those of fp32: Dice per label, and the share of voxels with another label."""

    dice: dict[str, float]
    changed: float


@dataclass(frozen=True)
class Acceptance:
    """What a variant must keep. `max_dice_drop` 0 and `max_changed` 0 ask for a lossless one."""

    max_dice_drop: float = 0.005
    max_changed: float = 0.001

    def missed(self, figures: Figures) -> list[str]:
        """One sentence a figure that is missed; empty where all hold. A NaN misses."""
        missed = [
            f"Dice of '{label}' is {dice:.4f}, at least {1 - self.max_dice_drop:.4f} is asked for"
            for label, dice in figures.dice.items()
            # Dice against fp32 itself: fp32's own is 1.
            if not 1 - dice <= self.max_dice_drop
        ]
        if not figures.changed <= self.max_changed:
            missed.append(f"{figures.changed:.3%} of the voxels change, at most {self.max_changed:.3%} may")
        return missed


@dataclass(frozen=True)
class Candidate(Generic[Engine]):
    """One precision: how to build it with some layers kept in the next higher one.

    `rank` gives the layers that may be put back, the most sensitive first; it is asked only once the plain
    variant has failed, because ranking costs more than trying. `build` may raise an EngineError; if that
    has a `layer` (as an fp16 overflow has), the layer is put back at once and the build tried again.
    """

    precision: str
    build: Callable[[frozenset[str]], Engine]
    rank: Callable[[], Sequence[str]] = tuple


@dataclass(frozen=True)
class Step:
    """One variant that was tried: what was kept higher, what came out, and why it was refused, if it was."""

    precision: str
    kept: tuple[str, ...]
    accepted: bool
    refused_because: tuple[str, ...] = ()
    dice: dict[str, float] = field(default_factory=dict)
    changed: float | None = None


@dataclass(frozen=True)
class SearchResult(Generic[Engine]):
    """All steps in the order they were tried, and the engine that was accepted."""

    path: tuple[Step, ...]
    accepted: Step
    engine: Engine

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON for the certificate."""
        return {"accepted": _plain(self.accepted), "path": [_plain(step) for step in self.path]}


class NoVariantError(EngineError):
    """No candidate reaches the acceptance figures. `path` holds every step that was tried."""

    def __init__(self, path: Sequence[Step]) -> None:
        tried = "; ".join(
            f"{step.precision} with {len(step.kept)} layers back: {', '.join(step.refused_because)}" for step in path
        )
        super().__init__(
            f"No precision keeps the segmentation. Tried: {tried or 'nothing'}. Add 'fp32' to the candidates, "
            "or loosen the acceptance figures."
        )
        self.path = tuple(path)


def search(
    candidates: Sequence[Candidate[Engine]],
    measure: Callable[[Engine], Figures],
    acceptance: Acceptance = Acceptance(),
) -> SearchResult[Engine]:
    """The first candidate, fastest first, that passes, with as few layers back as doubling and sparing find.

    Assumes that a variant gains, or at least does not lose, by having more layers back. Raises NoVariantError.
    """
    path: list[Step] = []
    for candidate in candidates:
        found = _Attempts(candidate, measure, acceptance, path).run()
        if found is not None:
            return SearchResult(tuple(path), *found)
    raise NoVariantError(path)


def mask_figures(
    reference: NDArray[np.integer[Any]], found: NDArray[np.integer[Any]], labels: Mapping[str, int]
) -> Figures:
    """Dice 2|A∩B| / (|A|+|B|) of each label (1 where neither mask has it) and the share of changed voxels.

    Both masks have one shape and hold label values. Raises ValueError for different shapes.
    """
    if reference.shape != found.shape:
        raise ValueError(f"Expected a mask of shape {reference.shape}, got {found.shape}.")
    dice = {name: _dice(reference == value, found == value) for name, value in labels.items()}
    return Figures(dice, float(np.mean(reference != found)))


def mixed_candidate(
    model: onnx.ModelProto,
    precision: Low,
    ranges: Mapping[str, float],
    to_engine: Callable[[onnx.ModelProto], Engine],
    rank: Callable[[], Sequence[str]],
) -> Candidate[Engine]:
    """fp16 or bf16 written into the graph. An fp16 overflow on the calibration scans is refused by layer."""

    def build(kept: frozenset[str]) -> Engine:
        if precision == "fp16":
            refuse_overflow(model, ranges, kept)
        return to_engine(to_mixed(model, precision, kept))

    return Candidate(precision, build, rank)


def rank_layers(model: onnx.ModelProto, inputs: Sequence[Feed], ranges: Mapping[str, float]) -> list[str]:
    """Convolutions and products, the one first that alone in fp16 changes the scores most.

    Each is tried on its own with all others in fp32, node by node, so the cost is one slow run of the graph a
    layer and input: one tile with structure in it is enough. A layer that overflows comes first.
    """
    low = low_nodes(model)
    layers = [n.name for n in model.graph.node if n.name in low and n.op_type in COMPUTE["fp16"]]
    reference = run_graph(model, inputs)

    def effect(layer: str) -> float:
        others = frozenset(low - {layer})
        if first_overflow(model, ranges, others):
            return float("inf")
        return _mean_change(reference, run_stepwise(to_mixed(model, "fp16", others), inputs))

    effects = {layer: effect(layer) for layer in layers}
    return sorted(layers, key=lambda layer: -effects[layer])


class _Attempts(Generic[Engine]):
    """The tries of one candidate; each is measured once and written to the path."""

    def __init__(
        self,
        candidate: Candidate[Engine],
        measure: Callable[[Engine], Figures],
        acceptance: Acceptance,
        path: list[Step],
    ) -> None:
        self.candidate, self.measure, self.acceptance, self.path = candidate, measure, acceptance, path
        self.forced: list[str] = []
        # Set by a build error that names no layer: putting layers back will not help.
        self.broken = False

    @functools.cached_property
    def layers(self) -> Sequence[str]:
        return tuple(self.candidate.rank())

    def run(self) -> tuple[Step, Engine] | None:
        failing, back = 0, 1
        found = self.attempt(())
        if found is not None or self.broken:
            return found
        most = int(len(self.layers) * MAX_SHARE_BACK)
        while found is None and failing < most and not self.broken:
            back = min(back, most)
            found = self.attempt(self.layers[:back])
            if found is None:
                failing, back = back, 2 * back
        return None if found is None else self.spare(*self.narrow(failing, back, found))

    def narrow(
        self, failing: int, passing: int, best: tuple[Step, Engine]
    ) -> tuple[Sequence[str], tuple[Step, Engine]]:
        """Halves the gap between a number of layers that failed and one that passed; the layers, and what passed."""
        while passing - failing > 1:
            middle = (failing + passing) // 2
            found = self.attempt(self.layers[:middle])
            if found is None:
                failing = middle
            else:
                passing, best = middle, found
        return self.layers[:passing], best

    def spare(self, layers: Sequence[str], best: tuple[Step, Engine]) -> tuple[Step, Engine]:
        """Does without each layer in turn that turns out not to be needed; the last one is known to be."""
        for layer in layers[-2::-1][:MOST_SPARED]:
            fewer = [one for one in layers if one != layer]
            found = self.attempt(fewer)
            if found is not None:
                layers, best = fewer, found
        return best

    def attempt(self, layers: Sequence[str]) -> tuple[Step, Engine] | None:
        """Builds and measures with `layers`, and those forced, put back."""
        while True:
            kept = tuple(dict.fromkeys([*self.forced, *layers]))
            try:
                engine = self.candidate.build(frozenset(kept))
            except EngineError as error:
                self.record(kept, (str(error),))
                layer = getattr(error, "layer", None)
                if layer is None or layer in kept:
                    self.broken = True
                    return None
                self.forced.append(layer)
                continue
            figures = self.measure(engine)
            step = self.record(kept, tuple(self.acceptance.missed(figures)), figures)
            return (step, engine) if step.accepted else None

    def record(self, kept: tuple[str, ...], refused: tuple[str, ...], figures: Figures | None = None) -> Step:
        dice, changed = (figures.dice, figures.changed) if figures else ({}, None)
        step = Step(self.candidate.precision, kept, not refused, refused, dice, changed)
        self.path.append(step)
        return step


def _dice(reference: NDArray[np.bool_], found: NDArray[np.bool_]) -> float:
    total = int(reference.sum()) + int(found.sum())
    return 2 * int((reference & found).sum()) / total if total else 1.0


def _mean_change(reference: Sequence[Mapping[str, NDArray[Any]]], found: Sequence[Mapping[str, NDArray[Any]]]) -> float:
    changes = [
        float(np.mean(np.abs(old[name].astype(np.float64) - new[name])))
        for old, new in zip(reference, found, strict=True)
        for name in old
    ]
    change = float(np.mean(changes))
    return change if np.isfinite(change) else float("inf")


def _plain(step: Step) -> dict[str, Any]:
    return {**asdict(step), "kept": list(step.kept), "refused_because": list(step.refused_because)}
