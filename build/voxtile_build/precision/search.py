"""The search for the first precision that keeps the segmentation. Knows no engine: it builds and measures by call.

It begins with the first candidate and measures it against fp32. While the acceptance limits are missed, it puts the
most sensitive layers back into a higher precision: it doubles their number until the limits hold, then halves the gap,
then tries to do without single layers. A candidate is dropped once half of its layers are restored.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, TypeVar

from voxtile_build.errors import EngineError

Engine = TypeVar("Engine")

MAX_SHARE_BACK = 0.5
"""Of a candidate's layers: with more of them back, the next candidate is as fast, and simpler."""

MOST_SPARED = 4
"""Most layers that are tried to do without at the end; each try builds and measures an engine."""


@dataclass(frozen=True)
class Metrics:
    """An engine's masks against those of fp32: Dice per label, and the share of voxels with another label."""

    dice: dict[str, float]
    changed: float


@dataclass(frozen=True)
class Acceptance:
    """Limits that a variant must keep; 0 and 0 accept only a variant with the masks of fp32.

    Attributes:
        max_dice_drop: how far the Dice of any label may lie below 1.
        max_changed: largest share of voxels that get another label.
    """

    max_dice_drop: float = 0.005
    max_changed: float = 0.001

    def missed(self, metrics: Metrics) -> list[str]:
        """A sentence for each limit that is missed; empty if all hold. NaN misses every limit."""
        missed = [
            f"Dice of '{label}' is {dice:.4f}, at least {1 - self.max_dice_drop:.4f} is asked for"
            for label, dice in metrics.dice.items()
            if not 1 - dice <= self.max_dice_drop
        ]
        if not metrics.changed <= self.max_changed:
            missed.append(f"{metrics.changed:.3%} of the voxels change, at most {self.max_changed:.3%} may")
        return missed


@dataclass(frozen=True)
class Candidate(Generic[Engine]):
    """One precision.

    Attributes:
        precision: its name.
        build: builds it; the layers of these names keep a higher precision. It may raise an EngineError. If the error
            has a `layer` (as an fp16 overflow has), that layer is put back and the build is tried again.
        rank: the layers that may be put back, the most sensitive first. It is called only after the variant without
            any layer back has failed, because ranking takes longer than trying.
    """

    precision: str
    build: Callable[[frozenset[str]], Engine]
    rank: Callable[[], Sequence[str]] = tuple


@dataclass(frozen=True)
class Step:
    """One variant that was tried.

    Attributes:
        precision: the candidate.
        kept: layers that were put back.
        accepted: whether it keeps the limits.
        refused_because: a sentence for each reason; empty if it was accepted.
        dice: for each label, against fp32; empty if it could not be built.
        changed: share of voxels with another label; None if it could not be built.
    """

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
    """No candidate keeps the limits. `path` holds every step that was tried."""

    def __init__(self, path: Sequence[Step]) -> None:
        tried = "; ".join(
            f"{step.precision} with {len(step.kept)} layers back: {', '.join(step.refused_because)}" for step in path
        )
        super().__init__(
            f"No precision keeps the segmentation. Tried: {tried or 'nothing'}. Add 'fp32' to the candidates, "
            "or loosen the limits."
        )
        self.path = tuple(path)


def search(
    candidates: Sequence[Candidate[Engine]],
    measure: Callable[[Engine], Metrics],
    acceptance: Acceptance = Acceptance(),
    discard: Callable[[Engine], None] = lambda _: None,
) -> SearchResult[Engine]:
    """The first candidate that keeps the limits, with few layers back.

    It assumes that more layers back never make a variant worse.

    Args:
        candidates: in the order in which they are tried, the fastest first.
        measure: an engine's masks against those of fp32.
        acceptance: the limits.
        discard: is given each engine that is not needed any more. Two are kept at most: the best, and the one at hand.

    Raises:
        NoVariantError: no candidate keeps the limits.
    """
    path: list[Step] = []
    for candidate in candidates:
        found = _Attempts(candidate, measure, acceptance, path, discard).run()
        if found is not None:
            return SearchResult(tuple(path), *found)
    raise NoVariantError(path)


class _Attempts(Generic[Engine]):
    """All tries of one candidate. Each is measured once and recorded in the path."""

    def __init__(
        self,
        candidate: Candidate[Engine],
        measure: Callable[[Engine], Metrics],
        acceptance: Acceptance,
        path: list[Step],
        discard: Callable[[Engine], None],
    ) -> None:
        self.candidate, self.measure, self.acceptance, self.path = candidate, measure, acceptance, path
        self.discard = discard
        self.best: tuple[Step, Engine] | None = None
        self.forced: list[str] = []
        # After a build error that names no layer: putting layers back will not help.
        self.broken = False

    @functools.cached_property
    def layers(self) -> Sequence[str]:
        return tuple(self.candidate.rank())

    def run(self) -> tuple[Step, Engine] | None:
        failing, back = 0, 1
        if self.attempt(()) or self.broken:
            return self.best
        most = int(len(self.layers) * MAX_SHARE_BACK)
        while self.best is None and failing < most and not self.broken:
            back = min(back, most)
            if not self.attempt(self.layers[:back]):
                failing, back = back, 2 * back
        if self.best is not None:
            self.spare(self.narrow(failing, back))
        return self.best

    def narrow(self, failing: int, passing: int) -> Sequence[str]:
        """Halves the gap between the number of layers that failed and the one that passed; the layers that are back."""
        while passing - failing > 1:
            middle = (failing + passing) // 2
            if self.attempt(self.layers[:middle]):
                passing = middle
            else:
                failing = middle
        return self.layers[:passing]

    def spare(self, layers: Sequence[str]) -> None:
        """Takes out each layer that is not needed. The last one is needed: without it, the search had failed."""
        for layer in layers[-2::-1][:MOST_SPARED]:
            fewer = [one for one in layers if one != layer]
            if self.attempt(fewer):
                layers = fewer

    def attempt(self, layers: Sequence[str]) -> bool:
        """Builds and measures the variant with `layers` put back, and those that a build error named.

        One that is accepted is the best so far: it has fewer layers back than the one before, which is given back.
        """
        while True:
            kept = tuple(dict.fromkeys([*self.forced, *layers]))
            try:
                engine = self.candidate.build(frozenset(kept))
            except EngineError as error:
                self.record(kept, (str(error),))
                layer = getattr(error, "layer", None)
                if layer is None or layer in kept:
                    self.broken = True
                    return False
                self.forced.append(layer)
                continue
            metrics = self.measure(engine)
            step = self.record(kept, tuple(self.acceptance.missed(metrics)), metrics)
            if not step.accepted:
                self.discard(engine)
            elif self.best is not None:
                self.discard(self.best[1])
            if step.accepted:
                self.best = step, engine
            return step.accepted

    def record(self, kept: tuple[str, ...], refused: tuple[str, ...], metrics: Metrics | None = None) -> Step:
        dice, changed = (metrics.dice, metrics.changed) if metrics else ({}, None)
        step = Step(self.candidate.precision, kept, not refused, refused, dice, changed)
        self.path.append(step)
        return step


def _plain(step: Step) -> dict[str, Any]:
    return {**asdict(step), "kept": list(step.kept), "refused_because": list(step.refused_because)}
