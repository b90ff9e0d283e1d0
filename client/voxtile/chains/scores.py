"""What a model's scores mean: the activation that they go through, and the labels that they decide.

Knows nothing of grids, tiles or files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.card import Card
from voxtile.chains.cleaning import clean
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
    if card.output.kind == "labels":
        return lambda scores: _indexed(scores[0], values)
    if card.output.kind == "foreground":
        background = values[0] if len(values) > 1 else values.dtype.type(0)
        threshold = _half(card)
        return lambda scores: np.where(scores[0] > threshold, values[-1], background)
    if card.regions:
        chosen = region_chooser(card)
        return lambda scores: _layered(scores, values, chosen, card.painting_order)
    return lambda scores: _largest(scores, values)


def winner(scores: NDArray[np.float32], card: Card, kind: np.dtype[Any]) -> NDArray[Any]:
    """Returns the number of the class that wins [...], counted from 0, as `kind`."""
    numbers = np.arange(len(card.labels), dtype=kind)
    return _indexed(scores[0], numbers) if card.output.kind == "labels" else _largest(scores, numbers)


def region_chooser(card: Card) -> Callable[[NDArray[np.float32]], NDArray[np.bool_]]:
    """Returns the function that says, of the scores [...] of one region, where the region is.

    Without a chain of post-processing, it is where the probability is one half or more.
    """
    finishing = card.finishing
    if finishing is None or finishing.threshold is None:
        least = np.float32(_half(card))
        return lambda scores: scores >= least
    if finishing.after != "sigmoid" or card.output.kind != "logits":
        least = np.float32(finishing.threshold * card.output.scale)
        return lambda scores: scores >= least
    if finishing.threshold == 0.5:
        return lambda scores: scores >= np.float32(0)
    share = np.float32(finishing.threshold)
    return lambda scores: sigmoid(scores) >= share


def _half(card: Card) -> float:
    """The score of probability one half."""
    plain = card.output.kind == "logits" and card.output.activation == "none"
    return 0.0 if plain else 0.5 * card.output.scale


def label_type(card: Card) -> np.dtype[Any]:
    """Returns uint8, or uint16 where a label's value exceeds 255."""
    return np.dtype(np.uint16 if max(label.value for label in card.labels) > 255 else np.uint8)


def region_masks(scores: NDArray[np.float32], card: Card, voxel_mm3: float) -> NDArray[np.uint8]:
    """Returns the mask of each region [region, ...] as 0 and 1, in the order of the card's labels.

    Where the card's chain cleans the regions on the scan's own grid, so are these.

    Args:
        scores: [region, ...] as they are kept on the scan's own grid: logits or probabilities of a MONAI model,
            probabilities of an nnU-Net model.
        card: the model's card.
        voxel_mm3: cubic millimetres of a voxel.
    """
    if card.nnunet is not None:
        return (scores > 0.5).astype(np.uint8)
    # Kept scores are divided by the scale.
    chosen = region_chooser(card.model_copy(update={"output": card.output.model_copy(update={"scale": 1.0})}))
    masks = chosen(scores).astype(np.uint8)
    if card.finishing is not None:
        clean(masks, card.finishing.on_scan_grid, voxel_mm3)
    return masks


def holds_label(scores: NDArray[np.float32], card: Card) -> bool:
    """Returns whether any voxel of the model's `scores` [score, *spatial] gets another label than background."""
    if card.output.kind == "labels":
        return bool(scores.any())
    if card.output.kind == "foreground":
        return bool((scores > 0.5 * card.output.scale).any())
    if card.regions:
        return bool(region_chooser(card)(activator(card)(scores)).any())
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


def _layered(
    scores: NDArray[np.float32],
    values: NDArray[Any],
    chosen: Callable[[NDArray[np.float32]], NDArray[np.bool_]],
    order: Sequence[int],
) -> NDArray[Any]:
    result = np.zeros(scores.shape[1:], values.dtype)
    for index in order:
        np.copyto(result, values[index], where=chosen(scores[index]))
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
