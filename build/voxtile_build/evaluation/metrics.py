"""Metrics between two results of the same network: probabilities, masks, Dice, changed voxels. Knows arrays only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile_build.spec.output import Output

Array = NDArray[Any]


def probabilities(scores: Array, output: Output) -> Array:
    """Scores [score, *spatial] as probabilities 0..1 float32, which are comparable between networks of any scale.

    A single logit without regions has no probability (its softmax is always 1) and stays as it is. Votes for labels
    stay too: they are shares of the weight already.
    """
    values = np.asarray(scores, dtype=np.float32)
    if output.scores != "logits":
        return np.asarray(values / np.float32(output.scale))
    if output.regions:
        # tanh takes any magnitude, where exp would overflow.
        return np.asarray(0.5 + 0.5 * np.tanh(0.5 * values))
    return values if len(values) == 1 else _softmax(values)


def _softmax(logits: Array) -> Array:
    """Over the first axis, float32; NaN and infinity give NaN, without a warning."""
    with np.errstate(invalid="ignore"):
        powers = np.exp(logits - logits.max(axis=0))
    return np.asarray(powers / powers.sum(axis=0))


def masks(scores: Array, output: Output) -> Array:
    """The mask of each label: [label, *spatial] bool. Masks of regions may overlap."""
    if output.scores == "foreground":
        return np.asarray(scores > 0.5 * output.scale)
    if output.regions:
        return np.asarray(scores >= (0.0 if output.scores == "logits" else 0.5 * output.scale))
    return np.asarray(np.arange(len(scores)).reshape(-1, *(1,) * (scores.ndim - 1)) == scores.argmax(axis=0))


def mask_names(output: Output) -> tuple[str, ...]:
    """Names of the masks [label, *spatial] that `masks` gives, in order."""
    if output.scores == "foreground":
        return (str(output.foreground),)
    return tuple(label.name for label in output.labels)


def dice(one: Array, other: Array) -> float | None:
    """2 |A ∩ B| / (|A| + |B|) of two masks (Dice 1945); None if both are empty."""
    both = int(one.sum()) + int(other.sum())
    return None if both == 0 else 2 * int((one & other).sum()) / both


def changed_voxels(one: Array, other: Array) -> int:
    """How many voxels differ in the mask of any label; masks are [label, *spatial]."""
    return int((one != other).any(axis=0).sum())
