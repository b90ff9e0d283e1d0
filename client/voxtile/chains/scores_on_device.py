"""Labels of stitched scores where their arrays lie: the rules of `scores`, for arrays of any library.

Works on arrays that array-api-compat knows. Knows nothing of grids, tiles or files.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from array_api_compat import array_namespace, device

from voxtile.card import Card
from voxtile.errors import ModelError

Array: TypeAlias = Any
"""An array of any library."""


def labels_on_device(scores: Array, card: Card) -> Array:
    """Returns the labels [...] of stitched scores [score, ...]: uint8, or int32 where a label's value exceeds 255.

    The rules are those of `activator` and `decider` in `voxtile.chains.scores`.

    Raises:
        ModelError: the card has a chain of post-processing.
    """
    if card.postprocessing is not None:
        raise ModelError(
            f"model {card.name!r}: its chain of post-processing is carried out on whole scans by the client alone"
        )
    xp = array_namespace(scores)
    numbers = [label.value for label in card.labels]
    values = xp.asarray(numbers, dtype=xp.uint8 if max(numbers) <= 255 else xp.int32, device=device(scores))
    if card.output.kind == "labels":
        return values[xp.astype(xp.round(scores[0, ...]), xp.int64)]
    if not card.regions and card.output.kind != "foreground":
        return values[xp.argmax(scores, axis=0)]  # an activation keeps the order of the scores
    shares = _activated(scores, card.output.activation)
    plain = card.output.kind == "logits" and card.output.activation == "none"
    threshold = 0.0 if plain else 0.5 * card.output.scale
    labels = xp.zeros(scores.shape[1:], dtype=values.dtype, device=device(scores))
    if card.output.kind == "foreground":
        background = values[0] if len(numbers) > 1 else labels
        return xp.where(shares[0, ...] > threshold, values[-1], background)
    for index in card.painting_order:
        labels = xp.where(shares[index, ...] >= threshold, values[index], labels)
    return labels


def _activated(scores: Array, activation: str) -> Array:
    xp = array_namespace(scores)
    if activation == "softmax":
        powers = xp.exp(scores - xp.max(scores, axis=0, keepdims=True))
        return powers / xp.sum(powers, axis=0, keepdims=True)
    return 1 / (1 + xp.exp(-scores)) if activation == "sigmoid" else scores
