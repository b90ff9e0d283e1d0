"""How long a training lasts, and its rate of learning on the way. Knows neither networks nor data."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from voxtile_build.errors import SlimmingError

WARM_UP = 0.03
"""Share of the budget over which the rate rises; without it, attention and a pruned start are thrown off."""

BEFORE_WARM_UP = 0.02
"""Share of the highest rate that the first step has."""

RATE = 3e-3
"""Highest rate of a convolutional student, for AdamW."""

RATE_OF_ATTENTION = 5e-4
"""Highest rate of a student with layer normalisation, that is with attention: more makes it diverge."""


@dataclass(frozen=True)
class Budget:
    """How long to train: until the steps or the seconds are spent, whichever comes first.

    Attributes:
        steps: of the optimiser.
        seconds: of training, over all restarts.
    """

    steps: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.steps, self.seconds) if value is not None]
        if not given or not all(value > 0 and math.isfinite(value) for value in given):
            raise SlimmingError(
                f"expected a budget of at least one step or some seconds, found steps {self.steps} and seconds "
                f"{self.seconds}; give --steps or --hours"
            )

    def spent(self, steps: int, seconds: float) -> float:
        """The share that is spent, from 0 to 1 and beyond."""
        shares = [0.0]
        if self.steps is not None:
            shares.append(steps / self.steps)
        if self.seconds is not None:
            shares.append(seconds / self.seconds)
        return max(shares)

    def seconds_left(self, steps: int, seconds: float) -> float | None:
        """About how long the rest takes; None before there is anything to go by."""
        spent = self.spent(steps, seconds)
        return None if not spent else max(seconds / spent - seconds, 0.0)


def rate_at(highest: float, spent: float) -> float:
    """The rate after a share `spent` of the budget: a linear rise, then a cosine down to 0."""
    if spent < WARM_UP:
        return highest * (BEFORE_WARM_UP + (1 - BEFORE_WARM_UP) * spent / WARM_UP)
    return highest * 0.5 * (1 + math.cos(math.pi * min((spent - WARM_UP) / (1 - WARM_UP), 1.0)))


def usual_rate(network: nn.Module) -> float:
    """The highest rate that suits a network."""
    attends = any(isinstance(module, nn.LayerNorm | nn.MultiheadAttention) for module in network.modules())
    return RATE_OF_ATTENTION if attends else RATE
