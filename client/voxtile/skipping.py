"""Leaves out tiles in which nothing can be, and checks a sample of them. Knows nothing of servers or stitching."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from voxtile.card import Card
from voxtile.chains.base import PreparedScan
from voxtile.errors import ModelError
from voxtile.tiling.plan import Tile, TilePlan
from voxtile.tiling.skip import empty_tiles

CERTAIN_LOGIT = 16.0
"""Its sigmoid and its softmax differ from 1 by about 1e-7, the last bit of a float32."""


def skippable_tiles(card: Card, prepared: PreparedScan, plan: TilePlan) -> frozenset[int]:
    """The indices of the tiles that lie outside the body by the card's rule.

    Raises:
        ModelError: the card has no such rule.
    """
    if card.background is None:
        raise ModelError(
            f"model {card.name!r} has no rule for what is empty (`background_at_most` in its spec), "
            "so --skip-empty cannot be used with it"
        )
    return empty_tiles(prepared.data, plan, prepared.background_at_most(card.background.at_most))


def background_scores(card: Card) -> NDArray[np.float32]:
    """[score] float32 scores that are certain of background, as the model itself would give them.

    Probabilities are 0 and 1 in the model's own scale. Logits become 0 and 1 where an activation follows; where none
    does, they are just large enough to decide, since they are mixed with their neighbours when they are resampled.
    """
    background = np.zeros(card.output.scores, np.float32)
    each_alone = bool(card.regions) or card.output.kind == "foreground"
    if card.output.kind == "logits":
        certain = 1.0 if card.output.activation == "none" else CERTAIN_LOGIT
        background[slice(None) if each_alone else 0] = -certain if each_alone else certain
    elif card.output.kind == "probabilities" and not each_alone:
        background[0] = card.output.scale
    return background


def spot_check_tiles(plan: TilePlan, skipped: Iterable[int], count: int) -> list[Tile]:
    """At most `count` of the skipped tiles, spread evenly over all of them."""
    left_out = sorted(skipped)
    step = max(len(left_out) // max(count, 1), 1)
    chosen = set(left_out[::step][:count])
    return [tile for tile in plan if tile.index in chosen]
