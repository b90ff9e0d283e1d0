"""A scan made ready for one model, and the way back: one seam for all kinds of pre- and post-processing."""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from voxtile.card import Card
from voxtile.chains.monai.encoding import choose_encoding
from voxtile.chains.monai.invert import Restorer, grid_strips, restore_bytes
from voxtile.chains.monai.preprocess import prepare
from voxtile.io.volume import Volume
from voxtile.tiling.strips import Strip


class PlaneSink(Protocol):
    """Takes finished scores along axis 0 of the prepared grid and makes labels of them.

    begin: the planes that follow are those of a strip, from the first on; whole planes need no word.
    """

    def start_strip(self, strip: Strip) -> None: ...

    def add_planes(self, planes: NDArray[np.float32]) -> None: ...

    def finish(self) -> NDArray[Any]: ...

    @property
    def scores(self) -> NDArray[np.float32]: ...


class PreparedScan(Protocol):
    """data: [channel, *grid], what tiles are cut from. figures: [channel, 2] to subtract and divide by, or None."""

    @property
    def data(self) -> NDArray[Any]: ...

    @property
    def statistics(self) -> NDArray[np.float32] | None: ...

    @property
    def input_rounding(self) -> float: ...

    def encode(self, values: NDArray[Any]) -> NDArray[Any]: ...

    def background_at_most(self, threshold: float) -> list[float]: ...

    def restorer(self, keep_scores: bool) -> PlaneSink: ...

    def strips(self, axis: int, count: int) -> tuple[Strip, ...]:
        """The grid in `count` strips along axis 1 or 2, or in as many as can be without changing a label."""
        ...

    def restore_bytes(self, planes: int, strip: Strip, keep_scores: bool) -> int: ...

    def holds_label(self, scores: NDArray[np.float32]) -> bool: ...


def prepare_scan(
    volume: Volume,
    card: Card,
    previous: NDArray[Any] | None = None,
    postprocessing: bool = True,
    max_bytes: int | None = None,
) -> PreparedScan:
    """Prepares `volume` as the card says.

    previous: [i, j, k], the labels of a cascade's first stage. postprocessing: whether what nnU-Net learned to do with
    finished labels is done. max_bytes: for the scan on the model's grid; MemoryLimitError where it needs more
    (nnU-Net's grid is known only once it is made).
    """
    if card.nnunet is None:
        return MonaiPreparedScan(volume, card, max_bytes)
    from voxtile.chains.nnunet.prepared_scan import NnunetPreparedScan

    return NnunetPreparedScan(volume, card, previous, postprocessing)


class MonaiPreparedScan:
    """MONAI's chain: orientation, spacing, intensity; scores are resampled back and then decided."""

    def __init__(self, volume: Volume, card: Card, max_bytes: int | None = None) -> None:
        prepared = prepare(volume, card, max_bytes=max_bytes)
        self._card = card
        self._grid = prepared.grid
        self._encoding = choose_encoding(prepared, card)
        self.data = prepared.data
        self.statistics = self._encoding.statistics
        self.input_rounding = self._encoding.max_rounding

    def encode(self, values: NDArray[Any]) -> NDArray[Any]:
        return self._encoding.encode(values)

    def background_at_most(self, threshold: float) -> list[float]:
        return [threshold] * len(self.data)

    def restorer(self, keep_scores: bool) -> PlaneSink:
        return Restorer(self._grid, self._card, keep_scores=keep_scores)

    def strips(self, axis: int, count: int) -> tuple[Strip, ...]:
        return grid_strips(self._grid, self._card, axis, count)

    def restore_bytes(self, planes: int, strip: Strip, keep_scores: bool) -> int:
        kept = 4 * self._card.output.scores * math.prod(self._grid.scan) if keep_scores else 0
        return restore_bytes(self._grid, self._card, planes, strip=strip) + kept

    def holds_label(self, scores: NDArray[np.float32]) -> bool:
        return holds_label(scores, self._card)


def holds_label(scores: NDArray[np.float32], card: Card) -> bool:
    """Whether any voxel of `scores` [score, *spatial] would get a label other than background."""
    if card.output.kind == "labels":
        return bool(scores.any())
    if card.output.kind == "foreground" or card.regions:
        threshold = 0.0 if card.output.kind == "logits" else 0.5 * card.output.scale
        return bool((scores > threshold).any())
    return bool((scores[1:] > scores[0]).any())
