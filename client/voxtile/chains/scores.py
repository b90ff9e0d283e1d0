"""What a model's scores mean: the activation that they go through, and the labels that they decide.

Knows nothing of grids, tiles or files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.card import Card
from voxtile.errors import ModelError

Decide = Callable[[NDArray[np.float32]], NDArray[Any]]


def activator(card: Card) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Returns the function that stitched scores [score, ...] go through first: softmax, sigmoid, or none."""
    if card.output.activation == "softmax":
        return softmax
    return sigmoid if card.output.activation == "sigmoid" else lambda scores: scores


def decider(card: Card) -> Decide:
    """Returns the function that turns scores [score, ...] into labels [...] of the type `label_type`.

    Classes: the largest score wins, the first of equal ones. Regions: wherever the probability is one half (the logit
    0) or more, as for MONAI's `AsDiscrete(threshold=0.5)`; they are painted in the card's order, later ones over
    earlier ones, and everything else is background. Foreground: wherever the probability exceeds one half. Labels: the
    label of that index.
    """
    values = np.array([label.value for label in card.labels], label_type(card))
    plain = card.output.kind == "logits" and card.output.activation == "none"
    threshold = 0.0 if plain else 0.5 * card.output.scale
    if card.output.kind == "labels":
        return lambda scores: _indexed(scores[0], values)
    if card.output.kind == "foreground":
        background = values[0] if len(values) > 1 else values.dtype.type(0)
        return lambda scores: np.where(scores[0] > threshold, values[-1], background)
    if card.regions:
        return lambda scores: _layered(scores, values, threshold, card.painting_order)
    return lambda scores: _largest(scores, values)


def label_type(card: Card) -> np.dtype[Any]:
    """Returns uint8, or uint16 where a label's value exceeds 255."""
    return np.dtype(np.uint16 if max(label.value for label in card.labels) > 255 else np.uint8)


def region_masks(scores: NDArray[np.float32], card: Card) -> NDArray[np.uint8]:
    """Returns the mask of each region [region, ...] as 0 and 1, in the order of the card's labels.

    Args:
        scores: [region, ...] as they are kept on the scan's own grid: logits or probabilities of a MONAI model,
            probabilities of an nnU-Net model.
        card: the model's card.
    """
    if card.nnunet is not None:
        return (scores > 0.5).astype(np.uint8)
    plain = card.output.kind == "logits" and card.output.activation == "none"
    return (scores >= (0.0 if plain else 0.5)).astype(np.uint8)


def holds_label(scores: NDArray[np.float32], card: Card) -> bool:
    """Returns whether any voxel of the model's `scores` [score, *spatial] gets another label than background."""
    if card.output.kind == "labels":
        return bool(scores.any())
    if card.output.kind == "foreground" or card.regions:
        threshold = 0.0 if card.output.kind == "logits" else 0.5 * card.output.scale
        return bool((scores > threshold).any() if card.output.kind == "foreground" else (scores >= threshold).any())
    return bool((scores[1:] > scores[0]).any())


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the softmax of `logits` [score, ...] over its first axis."""
    shares: NDArray[np.float32] = logits - logits.max(axis=0)  # from the largest down, nothing overflows
    np.exp(shares, out=shares)
    shares /= shares.sum(axis=0)
    return shares


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the sigmoid of each of `logits`."""
    shares: NDArray[np.float32] = -logits
    with np.errstate(over="ignore"):  # exp of a large number is infinite, and its share 0, as it should be
        np.exp(shares, out=shares)
    shares += 1
    return np.divide(1, shares, out=shares)


def _largest(scores: NDArray[np.float32], values: NDArray[Any]) -> NDArray[Any]:
    """The value of the largest score: a running maximum, since `argmax` over the first axis leaps through memory."""
    best = scores[0]
    winner = np.zeros(best.shape, np.uint8 if len(values) <= 256 else np.uint16)
    beaten, running = np.empty(best.shape, winner.dtype), None
    for index in range(1, len(values)):
        np.multiply(scores[index] > best, winner.dtype.type(index), out=beaten)
        np.maximum(winner, beaten, out=winner)  # indices only grow, so the latest winner is the largest
        if index + 1 < len(values):
            best = running = np.maximum(best, scores[index], out=running)
    return _looked_up(winner, values)


def _layered(scores: NDArray[np.float32], values: NDArray[Any], threshold: float, order: Sequence[int]) -> NDArray[Any]:
    result = np.zeros(scores.shape[1:], values.dtype)
    for index in order:
        np.copyto(result, values[index], where=scores[index] >= threshold)
    return result


def _indexed(indices: NDArray[np.float32], values: NDArray[Any]) -> NDArray[Any]:
    whole = np.rint(indices).astype(np.int64)
    if whole.min() < 0 or whole.max() >= len(values):
        raise ModelError(f"expected labels 0 to {len(values) - 1} from the model, found {whole.min()} to {whole.max()}")
    return values.take(whole)


def _looked_up(winner: NDArray[Any], values: NDArray[Any]) -> NDArray[Any]:
    if np.array_equal(values, np.arange(len(values))):
        return np.asarray(winner, values.dtype)
    return values.take(winner)
