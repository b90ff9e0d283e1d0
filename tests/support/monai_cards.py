"""Cards of models with MONAI's chain, and scans and scores that are taken through a part of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.support.phantoms import card_of
from voxtile.card import Card
from voxtile.chains.monai.encoding import Encoding, choose_encoding
from voxtile.chains.monai.grid import Grid
from voxtile.chains.monai.invert import Restorer
from voxtile.chains.monai.preprocess import Preprocessed, preprocess
from voxtile.io.volume import Volume

ZSCORE = {"rule": "zscore", "mask": "all"}

PADDING = {"int16": -32768.0, "fp16": -65504.0, "fp32": -3.4028234663852886e38}

RANGE = {"rule": "range", "a_min": -1000, "a_max": 1000}


def typed_card(dtype: str, **changes: Any) -> Card:
    return card_of(input={"dtype": dtype, "padding": PADDING[dtype]}, **changes)


def prepared_of(values: Any, dtype: Any, card: Card) -> Preprocessed:
    data = np.asarray(values, dtype).reshape(1, 1, 1, -1)
    return preprocess(Volume(data, np.eye(4), None, ("scan.nii",)), card)


def encoding_of(prepared: Preprocessed, card: Card) -> Encoding:
    return choose_encoding(prepared.data, prepared.statistics, card, prepared.names)


def class_card(count: int, **changes: Any) -> Card:
    """A card of `count` classes with values 0, 1, 2, …"""
    fields: dict[str, Any] = {
        "output": {"kind": "logits", "scores": count},
        "labels": [{"name": str(value), "value": value} for value in range(count)],
    }
    return card_of(**(fields | changes))


def restored(grid: Grid, card: Card, scores: NDArray[Any], portions: Sequence[int] = (3,), **options: Any) -> Restorer:
    """A Restorer that was fed all of `scores`, in portions of so many planes, from a buffer that is overwritten."""
    restorer, first, turn = Restorer(grid, card, **options), 0, 0
    while first < scores.shape[1]:
        last = min(first + portions[turn % len(portions)], scores.shape[1])
        buffer = scores[:, first:last].astype(np.float32)
        restorer.add_planes(buffer)
        buffer.fill(np.nan)
        first, turn = last, turn + 1
    return restorer


def random_scores(card: Card, grid: Grid) -> NDArray[np.float32]:
    rng, shape = np.random.default_rng(3), (card.output.scores, *grid.shape)
    values = rng.integers(0, 3, shape) if card.output.kind == "labels" else rng.normal(0, 1, shape)
    return values.astype(np.float32)
