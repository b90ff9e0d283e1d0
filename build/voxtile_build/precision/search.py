"""The search for the fastest precision that keeps the segmentation. Knows no engine: it builds and measures by call.

It begins with the fastest candidate and measures it against fp32. While the acceptance limits are missed, it puts the
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
) -> SearchResult[Engine]:
    """The first candidate that keeps the limits, with few layers back.

    It assumes that more layers back never make a variant worse.

    Args:
        candidates: in the order in which they are tried, the fastest first.
        measure: an engine's masks against those of fp32.
        acceptance: the limits.

    Raises:
        NoVariantError: no candidate keeps the limits.
    """
    path: list[Step] = []
    for candidate in candidates:
        found = _Attempts(candidate, measure, acceptance, path).run()
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
    ) -> None:
        self.candidate, self.measure, self.acceptance, self.path = candidate, measure, acceptance, path
        self.forced: list[str] = []
        # After a build error that names no layer: putting layers back will not help.
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
        """Halves the gap between the number of layers that failed and the one that passed.

        Returns:
            The layers that are back, and the step and engine with them.
        """
        while passing - failing > 1:
            middle = (failing + passing) // 2
            found = self.attempt(self.layers[:middle])
            if found is None:
                failing = middle
            else:
                passing, best = middle, found
        return self.layers[:passing], best

    def spare(self, layers: Sequence[str], best: tuple[Step, Engine]) -> tuple[Step, Engine]:
        """Takes out each layer that is not needed. The last one is needed: without it, the search had failed."""
        for layer in layers[-2::-1][:MOST_SPARED]:
            fewer = [one for one in layers if one != layer]
            found = self.attempt(fewer)
            if found is not None:
                layers, best = fewer, found
        return best

    def attempt(self, layers: Sequence[str]) -> tuple[Step, Engine] | None:
        """Builds and measures the variant with `layers` put back, and those that a build error named."""
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
            metrics = self.measure(engine)
            step = self.record(kept, tuple(self.acceptance.missed(metrics)), metrics)
            return (step, engine) if step.accepted else None

    def record(self, kept: tuple[str, ...], refused: tuple[str, ...], metrics: Metrics | None = None) -> Step:
        dice, changed = (metrics.dice, metrics.changed) if metrics else ({}, None)
        step = Step(self.candidate.precision, kept, not refused, refused, dice, changed)
        self.path.append(step)
        return step


def _plain(step: Step) -> dict[str, Any]:
    return {**asdict(step), "kept": list(step.kept), "refused_because": list(step.refused_because)}
