"""Predicts how much memory a segmentation takes, before its first tile is sent, and picks a schedule that fits.

Every part states the bytes of its own buffers; here they are only added up by name, so that an error can say what
takes most.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from voxtile.card import Card
from voxtile.chains.base import PreparedScan
from voxtile.errors import MemoryLimitError
from voxtile.io.volume import Volume
from voxtile.machine.memory import machine_bytes
from voxtile.tiling.extract import tile_bytes
from voxtile.tiling.plan import TilePlan
from voxtile.tiling.schedule import Schedule
from voxtile.tiling.skip import empty_tiles_bytes
from voxtile.tiling.stitch import Stitcher
from voxtile.tiling.stitch_fp16 import Fp16Stitcher
from voxtile.tiling.strips import Span, Strip
from voxtile.triton.pump import inflight_bytes

MIB = 1024**2

RUNTIME_BYTES = 150 * MIB
"""The interpreter with everything loaded, before any scan is read: 69 MiB measured on Python 3.11; the rest is room for
gRPC's threads and for what the allocator keeps."""


TILE_OBJECT_BYTES = 250
"""One tile's place in the list of all: 196 measured on Python 3.11, and the list itself."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Everything that the memory of one segmentation depends on, its schedule apart.

    Attributes:
        volume: the scan.
        prepared: the scan on the model's grid.
        card: the model's card.
        plan: where the tiles lie.
        servers: the number of servers.
        keep_scores: whether scores on the scan's own grid are kept.
        searched: whether empty tiles are searched for beforehand.
        held_bytes: what is held beside the scan meanwhile.
    """

    volume: Volume
    prepared: PreparedScan
    card: Card
    plan: TilePlan
    servers: int
    keep_scores: bool
    searched: bool
    held_bytes: int = 0

    def components(self, schedule: Schedule) -> dict[str, int]:
        """Returns the bytes of every large buffer under `schedule`, by name."""
        stitcher = Fp16Stitcher if schedule.half else Stitcher
        planes = stitcher.planes_at_once(self.plan)
        strips = _distinct(schedule.strips)
        working = {
            "stitching": max(stitcher.predicted_bytes(self.plan, self.card.output.scores, strip) for strip in strips),
            "tiles in flight": inflight_bytes(schedule.in_flight, self.servers, schedule.batch * self.tile_bytes),
            "restoring": max(self.prepared.restore_bytes(planes, strip, self.keep_scores) for strip in strips),
        }
        searching = empty_tiles_bytes(self.plan) if self.searched else 0
        return {
            "the scan": self.volume.nbytes,
            **({"the scan as it was read, and the mask": self.held_bytes} if self.held_bytes else {}),
            "the prepared scan": self.prepared.own_bytes,
            "the list of tiles": TILE_OBJECT_BYTES * len(self.plan),
            **working,
            "searching for empty tiles": max(searching - sum(working.values()), 0),  # done before the work begins
        }

    @property
    def tile_bytes(self) -> int:
        """Bytes of one tile as it is sent, and of its scores."""
        return tile_bytes(self.plan, self.card, len(self.prepared.data))


def _distinct(strips: Iterable[Strip]) -> list[Strip]:
    """One strip of each width: their buffers are equally large."""
    return list({(strip.axis, _length(strip.rows), _length(strip.target)): strip for strip in strips}.values())


def _length(span: Span) -> int:
    return span[1] - span[0]


def predicted_bytes(components: Mapping[str, int]) -> int:
    """Returns the sum of all buffers and of the interpreter itself."""
    return RUNTIME_BYTES + sum(components.values())


def fitting_schedule(
    estimate: MemoryEstimate, schedules: Iterable[Schedule], max_ram: int | None, *, half_allowed: bool
) -> Schedule:
    """Returns the first of `schedules` under which the segmentation takes at most `max_ram` bytes.

    Args:
        estimate: what the memory depends on.
        schedules: in order of preference, at least one.
        max_ram: limit in bytes; None for the machine's own memory.
        half_allowed: whether scores may be summed in half precision.

    Raises:
        MemoryLimitError: no schedule fits. The message names the largest buffers of the one that takes least.
    """
    limit = machine_bytes() if max_ram is None else max_ram
    least: tuple[int, Schedule] | None = None
    half_would_fit = False
    for schedule in schedules:
        needed = predicted_bytes(estimate.components(schedule))
        fits, allowed = needed <= limit, half_allowed or not schedule.half
        if fits and allowed:
            return schedule
        if allowed and (least is None or needed < least[0]):
            least = needed, schedule
        half_would_fit = half_would_fit or fits
    assert least is not None
    advice = ", or --allow-half-scores" if half_would_fit else ""
    allows = "this machine has" if max_ram is None else "--max-ram allows"
    raise MemoryLimitError(_too_little(*least, estimate, f"{allows} {limit / MIB:.0f} MiB") + advice)


def _too_little(needed: int, schedule: Schedule, estimate: MemoryEstimate, allowed: str) -> str:
    largest = sorted(estimate.components(schedule).items(), key=lambda item: -item[1])[:3]
    shares = ", ".join(f"{name} {size / MIB:.0f} MiB" for name, size in largest)
    strips = f" in {len(schedule.strips)} strips" if len(schedule.strips) > 1 else ""
    return (
        f"this scan needs at least about {math.ceil(needed / MIB)} MiB ({shares}), and {allowed}; that is with one "
        f"tile at a time{strips}; allow more"
    )


def left_for_reading(max_ram: int | None) -> int | None:
    """Returns the bytes of `max_ram` that are left for reading a scan; None where there is no limit."""
    return None if max_ram is None else max(max_ram - RUNTIME_BYTES, 0)


def left_for_preparing(volume: Volume, max_ram: int | None) -> int | None:
    """Returns the bytes of `max_ram` that are left for the prepared scan; None where there is no limit."""
    return None if max_ram is None else max(max_ram - RUNTIME_BYTES - volume.nbytes, 0)
