"""Schedules of a segmentation, from the fastest to the one that takes least memory.

First fewer tiles are sent at once, which costs speed; then the volume is cut into strips, which costs tiles sent twice;
last, where that is allowed, scores are summed in half precision, which costs exactness. Knows nothing of how much
memory anything takes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from voxtile.tiling.plan import TilePlan
from voxtile.tiling.strips import Strip, cut_axis, most_strips

MAX_INFLIGHT_BYTES = 256 * 2**20
"""Limit on the bytes of requests and answers in flight to one server, unless MIN_IN_FLIGHT requests exceed it."""

MIN_IN_FLIGHT = 2
"""Requests in flight to one server at least: with one computed and one waiting, an engine never idles."""


@dataclass(frozen=True)
class Schedule:
    """How one scan is worked through.

    Attributes:
        in_flight: requests in flight to one server at most.
        batch: tiles in a request.
        strips: parts of the volume, worked through one after the other.
        half: whether scores are summed in half precision.
    """

    in_flight: int
    batch: int
    strips: tuple[Strip, ...]
    half: bool = False


def at_once(in_flight: int, batch: int, tile_bytes: int) -> tuple[int, int]:
    """Reduces `in_flight` and `batch` so that requests in flight to one server stay within MAX_INFLIGHT_BYTES.

    The batch is reduced first where fewer than MIN_IN_FLIGHT requests would be left.

    Args:
        in_flight: requests in flight that are asked for.
        batch: tiles in a request that are asked for.
        tile_bytes: bytes of a tile and of its answer.

    Returns:
        `in_flight` and `batch`.
    """
    tiles = MAX_INFLIGHT_BYTES // tile_bytes
    batch = min(batch, max(tiles // MIN_IN_FLIGHT, 1))
    return min(in_flight, max(tiles // batch, MIN_IN_FLIGHT)), batch


def schedules(
    in_flight: int, batch: int, plan: TilePlan, cut: Callable[[int, int], tuple[Strip, ...]]
) -> Iterator[Schedule]:
    """Yields all schedules, the cheapest sacrifice first.

    Args:
        in_flight: requests in flight to one server at most.
        batch: tiles in a request at most.
        plan: where the tiles lie.
        cut: `cut(axis, count)` returns `count` strips along an axis, or fewer where there cannot be so many.
    """
    for half in (False, True):
        for strips in _cuts(plan, cut):
            for fewer in _fewer_at_once(Schedule(in_flight, batch, strips)):
                yield replace(fewer, half=half)


def _cuts(plan: TilePlan, cut: Callable[[int, int], tuple[Strip, ...]]) -> Iterator[tuple[Strip, ...]]:
    """Yields the volume in one strip, in two, and so on, until a cut gives no more strips than the one before."""
    axis = cut_axis(plan)
    for count in range(1, most_strips(plan, axis) + 1):
        strips = cut(axis, count)
        if len(strips) < count:
            return
        yield strips


def _fewer_at_once(schedule: Schedule) -> Iterator[Schedule]:
    """Yields `schedule`, then with half as many requests each time, then with half as many tiles in one, down to 1."""
    for in_flight in _halvings(schedule.in_flight):
        yield replace(schedule, in_flight=in_flight)
    for batch in itertools.islice(_halvings(schedule.batch), 1, None):
        yield replace(schedule, in_flight=1, batch=batch)


def _halvings(number: int) -> Iterator[int]:
    while number:
        yield number
        number //= 2
