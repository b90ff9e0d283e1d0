"""What the pool asks of a teacher. Knows neither networks nor engines."""

from __future__ import annotations

from typing import Literal, Protocol

from voxtile_build.arrays import Array

Kind = Literal["logits", "probabilities"]
"""What a teacher answers."""


class Labeller(Protocol):
    """Answers ROIs."""

    def scores(self, rois: Array, statistics: Array) -> Array:
        """The teacher's answer.

        Args:
            rois: [batch, channel, *roi] in the input's data type.
            statistics: [batch, channel, 2] of their scans.

        Returns:
            [batch, class, *roi] float32, logits or probabilities.
        """
        ...

    def image(self, rois: Array, statistics: Array) -> Array:
        """What the network sees of `rois`: [batch, channel, *roi] float32, normalised."""
        ...
