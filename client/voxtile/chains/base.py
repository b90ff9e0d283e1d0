"""The interface between a scan prepared for one model and the pipeline, the same for every kind of pre-processing.

Knows nothing of MONAI, nnU-Net, cards or servers.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from voxtile.tiling.strips import Strip


class PlaneSink(Protocol):
    """Turns finished scores, which arrive in planes along axis 0 of the prepared grid, into labels of the scan."""

    def start_strip(self, strip: Strip) -> None:
        """Announces that the planes that follow belong to `strip`, from its first plane on.

        Not needed where the planes are whole ones.
        """
        ...

    def add_planes(self, planes: NDArray[np.float32]) -> None:
        """Takes the next planes [score, n, y, z]; the caller may overwrite the array afterwards."""
        ...

    def finish(self) -> NDArray[Any]:
        """Returns the labels [i, j, k] on the scan's own grid."""
        ...

    @property
    def scores(self) -> NDArray[np.float32]:
        """The scores [score, i, j, k] on the scan's own grid; ValueError unless they were kept."""
        ...


class PreparedScan(Protocol):
    """One scan on the grid of one model."""

    @property
    def data(self) -> NDArray[Any]:
        """[channel, *grid] the values that tiles are cut from."""
        ...

    @property
    def statistics(self) -> NDArray[np.float32] | None:
        """[channel, 2] float32 what the model subtracts and divides by; None where it needs neither."""
        ...

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres between voxels of `data` along its axes."""
        ...

    @property
    def own_bytes(self) -> int:
        """The bytes that `data` takes beyond the scan itself: 0 where it is a view of the scan."""
        ...

    @property
    def input_rounding(self) -> float:
        """The largest difference, in units of the scan, between a voxel and what is sent for it."""
        ...

    def encode(self, values: NDArray[Any]) -> NDArray[Any]:
        """Returns `values` [channel, ...], a part of `data`, in the model's input type."""
        ...

    def background_at_most(self, threshold: float) -> list[float]:
        """Returns the value of each channel at or below which a voxel lies outside the body.

        Args:
            threshold: the card's limit, in units of the scan.
        """
        ...

    def restorer(self, keep_scores: bool) -> PlaneSink:
        """Returns a sink for this scan's scores."""
        ...

    def strips(self, axis: int, count: int) -> tuple[Strip, ...]:
        """Returns the grid in `count` strips along axis 1 or 2, or in as many as leave every label unchanged."""
        ...

    def restore_bytes(self, planes: int, strip: Strip, keep_scores: bool) -> int:
        """Returns the bytes of a restorer at its peak when it gets up to `planes` planes of `strip` at a time."""
        ...

    def holds_label(self, scores: NDArray[np.float32]) -> bool:
        """Returns whether any voxel of `scores` [score, *spatial] would get a label other than background."""
        ...
