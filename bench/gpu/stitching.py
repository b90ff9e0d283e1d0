"""Tiles of a scan that is on the device, and their scores made into labels there, by Voxtile's plan.

The sums are those of `voxtile.tiling.stitch`. They are not divided by the weights, which are the same for all labels of
a voxel: the label with the largest sum is the label with the largest mean. Knows nothing of networks or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from voxtile.tiling.plan import Tile, TilePlan


class DeviceStitcher:
    """Adds up weighted scores on a device.

    Args:
        plan: where the tiles lie.
        scores: of a voxel.
        device: where the sums [score, *padded] are held, in fp32.
    """

    def __init__(self, plan: TilePlan, scores: int, device: str) -> None:
        self._plan = plan
        self._sums = torch.zeros((scores, *plan.padded), device=device)
        self._weights = torch.from_numpy(plan.weights).to(device)

    def add(self, tiles: Sequence[Tile], scores: torch.Tensor) -> None:
        """Adds the scores [tile, score, *roi] of some tiles, in any floating type."""
        for tile, one in zip(tiles, scores, strict=True):
            self._sums[(slice(None), *tile.slices)].addcmul_(one, self._weights)

    def labels(self) -> torch.Tensor:
        """[*image] uint8: for each voxel the label with the largest score; the first one of equals."""
        return self._sums[(slice(None), *_inside(self._plan))].argmax(0).to(torch.uint8)


def padded(values: torch.Tensor, plan: TilePlan) -> torch.Tensor:
    """Returns a scan [*image] with zeros around it, up to the size of a tile: [*padded]."""
    result = values.new_zeros(plan.padded)
    result[_inside(plan)] = values
    return result


def cut(values: torch.Tensor, tiles: Sequence[Tile]) -> torch.Tensor:
    """Returns tiles [tile, 1, *roi] of a padded scan."""
    return torch.stack([values[tile.slices] for tile in tiles])[:, None]


def _inside(plan: TilePlan) -> tuple[slice, ...]:
    """The scan within the padded volume."""
    return tuple(slice(first, first + size) for first, size in zip(plan.before, plan.image, strict=True))
