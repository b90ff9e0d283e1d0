"""From scores to labels where a chain has steps for labels in between: decide, clean, and only then give values.

In between a voxel holds a code. For classes it is the number of the network's channel, for regions one bit for each of
them, because they overlap. Without such steps a code is the label itself. Knows nothing of grids or tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.card import Card
from voxtile.chains.cleaning import BYTES_A_VOXEL, clean
from voxtile.chains.scores import Decide, decider, label_type, region_chooser, winner
from voxtile.errors import ModelError
from voxtile.transforms.base import Transform

MOST_REGIONS = 64
"""Regions that the bits of a code can hold."""


@dataclass(frozen=True)
class Decision:
    """How scores become labels.

    Attributes:
        decide: turns scores [score, ...] into codes [...].
        dtype: of codes.
        card: the model's card.
        coded: whether codes stand for labels instead of being them.
    """

    decide: Decide
    dtype: np.dtype[Any]
    card: Card
    coded: bool

    def cleaned(self, codes: NDArray[Any], steps: Sequence[Transform], voxel_mm3: float) -> NDArray[Any]:
        """Returns `codes` [x, y, z] after `steps`; changed in place where they can be."""
        if not steps:
            return codes
        if not self.card.regions:
            clean(codes[None], steps, voxel_mm3)
            return codes
        masks = self.masks(codes)
        clean(masks, steps, voxel_mm3)
        result = np.zeros(codes.shape, codes.dtype)
        for bit, mask in enumerate(masks):
            result |= mask.astype(codes.dtype) << codes.dtype.type(bit)
        return result

    def masks(self, codes: NDArray[Any]) -> NDArray[np.uint8]:
        """Returns the mask [region, ...] of each region of `codes` [...] as 0 and 1."""
        one = codes.dtype.type(1)
        return np.stack(
            [((codes >> codes.dtype.type(bit)) & one).astype(np.uint8) for bit in range(len(self.card.labels))]
        )

    def labels(self, codes: NDArray[Any]) -> NDArray[Any]:
        """Returns the labels [...] that `codes` [...] stand for."""
        if not self.coded:
            return codes
        values = np.array([label.value for label in self.card.labels], label_type(self.card))
        if not self.card.regions:
            return values.take(codes)
        result = np.zeros(codes.shape, values.dtype)
        for index in self.card.painting_order:
            np.copyto(result, values[index], where=(codes >> codes.dtype.type(index)) & codes.dtype.type(1) == 1)
        return result

    @property
    def cleaning_bytes(self) -> int:
        """Bytes a voxel that `cleaned` and `labels` take besides the codes."""
        return BYTES_A_VOXEL + (len(self.card.labels) + self.dtype.itemsize if self.card.regions else 0) + 2


def decision_of(card: Card) -> Decision:
    """Returns how the scores of a model become labels.

    Raises:
        ModelError: there are more regions than a code can hold.
    """
    finishing = card.finishing
    if finishing is None or not (finishing.cleans or finishing.decided_first):
        return Decision(decider(card), label_type(card), card, coded=False)
    count = len(card.labels)
    if not card.regions:
        kind = np.dtype(np.uint8 if count <= 256 else np.uint16)
        return Decision(lambda scores: winner(scores, card, kind), kind, card, coded=True)
    if count > MOST_REGIONS:
        raise ModelError(f"model {card.name!r} has {count} regions; this client cleans at most {MOST_REGIONS}")
    kind = np.dtype(next(kind for kind in (np.uint8, np.uint16, np.uint32, np.uint64) if count <= 8 * kind().itemsize))
    chosen = region_chooser(card)

    def bits(scores: NDArray[np.float32]) -> NDArray[Any]:
        result = np.zeros(scores.shape[1:], kind)
        for index, region in enumerate(scores):
            result |= chosen(region).astype(kind) << kind.type(index)
        return result

    return Decision(bits, kind, card, coded=True)
