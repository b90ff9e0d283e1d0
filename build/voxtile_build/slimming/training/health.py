"""Notices that a training has gone wrong, by its losses alone."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

SMOOTHING = 0.98
"""Of the mean over losses: about the last 50 steps count. Patches differ, and so does the loss of each."""

ENOUGH = 50
"""Steps before a mean counts: the first patches may be empty ones, that nobody can get wrong."""

FAR, LEAST = 3.0, 0.1
"""Times the best mean, and at least so much above it: far from what was reached."""

LONG = 200
"""Steps that a training may be far off before it counts as diverged; from a bad batch it comes back within some ten."""

BROKEN = 5
"""Losses or gradients in a row that are not finite. A single one changes nothing: its step is left out."""


@dataclass
class Health:
    """What the losses so far say.

    Attributes:
        steps: with a finite loss.
        total: of the smoothed losses, before its weight is taken out.
        best: mean; infinite before there are enough losses.
        far: steps in a row far above the best mean.
        broken: steps in a row without a finite loss.
    """

    steps: int = 0
    total: float = 0.0
    best: float = math.inf
    far: int = 0
    broken: int = 0

    @property
    def loss(self) -> float:
        """The mean over the last steps."""
        return self.total / (1 - SMOOTHING**self.steps) if self.steps else math.nan

    @property
    def good(self) -> bool:
        """Whether the weights of this moment are worth keeping."""
        return self.steps > 0 and self.broken == 0 and self.far == 0

    def saw(self, loss: float) -> None:
        """Take in the loss of a step."""
        if not math.isfinite(loss):
            self.broken += 1
            return
        self.broken, self.steps = 0, self.steps + 1
        self.total = SMOOTHING * self.total + (1 - SMOOTHING) * loss
        if self.steps >= ENOUGH:
            self.best = min(self.best, self.loss)
        self.far = self.far + 1 if self.loss > max(FAR * self.best, self.best + LEAST) else 0

    @property
    def trouble(self) -> str | None:
        """Why the training has to end; None while it may go on."""
        if self.broken >= BROKEN:
            return f"{self.broken} losses in a row are not finite"
        if self.far >= LONG:
            return f"it has diverged: a loss of {self.loss:.3g} for {self.far} steps, after {self.best:.3g}"
        return None

    def facts(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {**asdict(self), "best": self.best if math.isfinite(self.best) else None}

    @classmethod
    def of(cls, facts: dict[str, Any]) -> Health:
        """From a checkpoint."""
        return cls(**{**facts, "best": math.inf if facts["best"] is None else facts["best"]})
