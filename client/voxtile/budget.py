"""How much memory a segmentation will take, told before the first tile.

A prediction is a sum of buffers that are known by shape; each term is named, so that an error can say what to change.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from voxtile.card import Card
from voxtile.chains.base import PreparedScan
from voxtile.errors import MemoryLimitError
from voxtile.io.volume import Volume
from voxtile.tiling.plan import TilePlan
from voxtile.tiling.schedule import Schedule
from voxtile.tiling.stitch import PORTION, scratch_shape, slab_shape
from voxtile.tiling.strips import Span, Strip
from voxtile.triton.endpoint import DTYPES
from voxtile.triton.transport import ready_ahead

MIB = 1024**2

RUNTIME_BYTES = 150 * MIB
"""The interpreter with everything loaded, before any scan is read: 69 MiB measured on Python 3.11, the rest is room for
gRPC's threads and for what the allocator keeps."""

SEARCH_BYTES = 6
"""For each voxel while empty tiles are looked for: the summed-volume table in 32 bits, and two masks."""


@dataclass(frozen=True)
class MemoryEstimate:
    """What memory depends on. servers: how many. searched: whether empty tiles are looked for beforehand."""

    volume: Volume
    case: PreparedScan
    card: Card
    plan: TilePlan
    servers: int
    keep_scores: bool
    searched: bool

    def components(self, schedule: Schedule) -> dict[str, int]:
        """Bytes of every large buffer, by name, on this course."""
        widths = {(strip.axis, *map(_length, (strip.rows, strip.target))): strip for strip in schedule.strips}.values()
        stitching = max(stitching_bytes(self.plan, self._scores, strip, schedule.half) for strip in widths)
        planes = PORTION if schedule.half else self.plan.roi[0]
        restoring = max(self.case.restore_bytes(planes, strip, self.keep_scores) for strip in widths)
        working = {"stitching": stitching, "tiles on their way": self._on_their_way(schedule), "restoring": restoring}
        searching = SEARCH_BYTES * math.prod(self.plan.image) if self.searched else 0
        return {
            "the scan": self.volume.data.nbytes,
            "the prepared scan": self._prepared_bytes,
            **working,
            "looking for empty tiles": max(searching - sum(working.values()), 0),  # done before the work begins
        }

    @property
    def _scores(self) -> int:
        return self.card.output.scores

    @property
    def _prepared_bytes(self) -> int:
        return 0 if np.shares_memory(self.case.data, self.volume.data) else self.case.data.nbytes

    @property
    def tile_bytes(self) -> int:
        """Of one tile as it is sent, and of its scores."""
        voxels = math.prod(self.plan.roi)
        tile_in = len(self.case.data) * voxels * np.dtype(DTYPES[self.card.input.dtype][1]).itemsize
        return tile_in + self._scores * voxels * np.dtype(DTYPES[self.card.output.dtype][1]).itemsize

    def _on_their_way(self, schedule: Schedule) -> int:
        requests = schedule.in_flight * self.servers + ready_ahead(schedule.in_flight)
        return 2 * schedule.batch * requests * self.tile_bytes


def _length(span: Span) -> int:
    return span[1] - span[0]


def predicted_bytes(components: Mapping[str, int]) -> int:
    """The sum of all buffers and of the interpreter itself."""
    return RUNTIME_BYTES + sum(components.values())


def fitting_schedule(
    buffers: MemoryEstimate, schedules: Iterable[Schedule], max_ram: int | None, *, half_allowed: bool
) -> Schedule:
    """The first of `courses` on which `buffers` take at most `max_ram` bytes, in half precision only where allowed.

    Raises MemoryLimitError where there is none, with the largest terms of the course that takes least.
    """
    least: tuple[int, Schedule] | None = None
    half_would_do = False
    for schedule in schedules:
        needed = predicted_bytes(buffers.components(schedule))
        fits, allowed = max_ram is None or needed <= max_ram, half_allowed or not schedule.half
        if fits and allowed:
            return schedule
        if allowed and (least is None or needed < least[0]):
            least = needed, schedule
        half_would_do = half_would_do or fits
    assert least is not None
    advice = ", or --allow-half-scores" if half_would_do else ""
    raise MemoryLimitError(_too_little(*least, buffers, max_ram or 0) + advice)


def _too_little(needed: int, schedule: Schedule, buffers: MemoryEstimate, max_ram: int) -> str:
    largest = sorted(buffers.components(schedule).items(), key=lambda term: -term[1])[:3]
    shares = ", ".join(f"{name} {size / MIB:.0f} MiB" for name, size in largest)
    strips = f" in {len(schedule.strips)} strips" if len(schedule.strips) > 1 else ""
    return (
        f"this scan needs at least about {math.ceil(needed / MIB)} MiB ({shares}), and --max-ram allows "
        f"{max_ram / MIB:.0f} MiB; that is with one tile at a time{strips}; allow more"
    )


def stitching_bytes(plan: TilePlan, scores: int, strip: Strip | None = None, half: bool = False) -> int:
    """Sums [score, depth, *plane], weights [depth, *plane] and scratch for a few planes of all and of a tile, float32.

    With `half` the sums are float16, and a few planes of them float32 on their way out.
    """
    slab = slab_shape(plan, strip)
    scratch = math.prod(scratch_shape(plan, strip))
    portion = min(PORTION, slab[0]) * math.prod(slab[1:])
    if half:
        return (2 * scores + 8) * math.prod(slab) + 4 * (2 * scratch + scores * portion)
    return 4 * ((scores + 1) * math.prod(slab) + scratch + portion)


def left_for_preparing(volume: Volume, max_ram: int | None) -> int | None:
    """Bytes that are left for the prepared scan of `max_ram`."""
    return None if max_ram is None else max(max_ram - RUNTIME_BYTES - volume.data.nbytes, 0)
