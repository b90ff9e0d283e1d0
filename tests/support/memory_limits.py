"""Memory allowances under which a scan is worked through in a chosen way."""

from __future__ import annotations

from typing import Any

import numpy as np

from voxtile import Segmenter
from voxtile.budget import MemoryEstimate, predicted_bytes
from voxtile.tiling.plan import plan_tiles, tile_shape
from voxtile.tiling.schedule import schedules


def limit_for(segmenter: Segmenter, image: Any, strips: int, *, half: bool = False) -> int:
    """Bytes with which `segmenter` needs so many strips for `image`, one tile at a time, summed so precisely."""
    loaded, card, options = segmenter.load(image), segmenter.card, segmenter.options
    servers = len(segmenter.transport.servers)
    prepared, grid = loaded.prepared, loaded.prepared.data.shape[1:]
    plan = plan_tiles(grid, tile_shape(card, grid), segmenter.tiling)
    estimate = MemoryEstimate(loaded.volume, prepared, card, plan, servers, options.keep_scores, options.skip_empty)
    possible = schedules(1, 1, plan, prepared.strips)
    schedule = next(one for one in possible if len(one.strips) == strips and one.half == half)
    return predicted_bytes(estimate.components(schedule))


def held_bytes(holder: Any) -> int:
    """Bytes of all arrays that an object holds."""
    return sum(value.nbytes for value in vars(holder).values() if isinstance(value, np.ndarray))
