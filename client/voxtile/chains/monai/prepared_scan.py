"""A scan prepared by MONAI's transforms; its scores are brought back to the scan's grid and decided."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.card import Card
from voxtile.chains.base import PlaneSink
from voxtile.chains.monai.encoding import choose_encoding
from voxtile.chains.monai.invert import Restorer, grid_strips, restore_bytes, takes_nearest
from voxtile.chains.monai.preprocess import Preprocessed, preprocess
from voxtile.chains.monai.way_back import WayBack
from voxtile.chains.scores import holds_label
from voxtile.io.geometry import spacing_of
from voxtile.io.volume import Volume
from voxtile.tiling.strips import Strip


class MonaiPreparedScan:
    """Implements `voxtile.chains.base.PreparedScan` for a model trained with MONAI's transforms.

    Args:
        volume: the scan.
        card: the model's card.
        max_bytes: limit for the scan on the model's grid.

    Raises:
        InputError: the scan has nothing to normalise by, no foreground, or values that the input type cannot hold.
        MemoryLimitError: the scan on the model's grid needs more than `max_bytes`.
    """

    def __init__(self, volume: Volume, card: Card, max_bytes: int | None = None) -> None:
        ready = preprocess(volume, card, max_bytes=max_bytes)
        self._card = card
        self._grid = ready.grid
        self._back = _way_back(ready, volume, card)
        self._encoding = choose_encoding(ready.data, ready.statistics, card, ready.names)
        self.data = ready.data
        self.own_bytes = 0 if np.may_share_memory(ready.data, volume.data) else ready.data.nbytes
        self.statistics = self._encoding.statistics
        self.input_rounding = self._encoding.max_rounding

    @property
    def spacing(self) -> tuple[float, float, float]:
        i, j, k = spacing_of(self._grid.affine).tolist()
        return i, j, k

    def encode(self, values: NDArray[Any]) -> NDArray[Any]:
        return self._encoding.encode(values)

    def background_at_most(self, threshold: float) -> list[float]:
        return [threshold] * len(self.data)

    def restorer(self, keep_scores: bool) -> PlaneSink:
        if self._back is None:
            return Restorer(self._grid, self._card, keep_scores=keep_scores)
        return self._back.sink(keep_scores)

    def strips(self, axis: int, count: int) -> tuple[Strip, ...]:
        if self._back is None:
            return grid_strips(self._grid, self._card, axis, count)
        return self._back.strips(axis, count)

    def restore_bytes(self, planes: int, strip: Strip, keep_scores: bool) -> int:
        if self._back is not None:
            return self._back.bytes(planes, strip, keep_scores)
        kept = 4 * self._card.output.scores * math.prod(self._grid.scan) if keep_scores else 0
        return restore_bytes(self._grid, self._card, planes, strip=strip) + kept

    def holds_label(self, scores: NDArray[np.float32]) -> bool:
        return holds_label(scores, self._card)


def _way_back(ready: Preprocessed, volume: Volume, card: Card) -> WayBack | None:
    """The way back of a chain of steps; None where a Restorer goes all of it."""
    back = WayBack(ready.way, ready.way.grid(ready.grid.affine), card, _mm3(ready.grid.affine), _mm3(volume.affine))
    plain = card.preprocessing is None and card.postprocessing is None
    return None if plain and not (takes_nearest(card) or back.tilted) else back


def _mm3(affine: NDArray[np.float64]) -> float:
    """Cubic millimetres of a voxel as MONAI counts them: the product of the spacings."""
    return float(np.prod(np.linalg.norm(affine[:3, :3], axis=0)))
