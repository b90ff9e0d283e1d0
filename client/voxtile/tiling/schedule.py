"""How a scan is worked through, and what may be given up, in which order, so that it takes less memory.

First tiles at once, which costs speed; then whole planes, which costs tiles sent twice; last, where that is allowed,
the precision of sums, which costs exactness. Knows nothing of how much memory anything takes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from voxtile.tiling.plan import TilePlan
from voxtile.tiling.strips import Strip, cut_axis, most_strips

MAX_INFLIGHT_BYTES = 256 * 2**20
"""Bytes of requests and answers that are on their way to one server at once, unless the fewest that may be are more."""

MIN_IN_FLIGHT = 2
"""With one request computed and one waiting, an engine never idles."""


@dataclass(frozen=True)
class Schedule:
    """in_flight: requests on their way to one server at most. batch: tiles a request. strips: worked through one after
    the other. half: scores are summed in half precision."""

    in_flight: int
    batch: int
    strips: tuple[Strip, ...]
    half: bool = False


def at_once(in_flight: int, batch: int, tile_bytes: int) -> tuple[int, int]:
    """Requests on their way to one server, and tiles in one, where `in_flight` and `batch` may be: fewer of large ones.

    tile_bytes: of a tile and of its answer. A batch is cut before the engine would have to wait for its next request.
    """
    tiles = MAX_INFLIGHT_BYTES // max(tile_bytes, 1)
    batch = min(batch, max(tiles // MIN_IN_FLIGHT, 1))
    return min(in_flight, max(tiles // batch, MIN_IN_FLIGHT)), batch


def schedules(
    in_flight: int, batch: int, plan: TilePlan, cut: Callable[[int, int], tuple[Strip, ...]]
) -> Iterator[Schedule]:
    """Every course, the one that gives up least first. cut: makes so many (second argument) strips along an axis."""
    for half in (False, True):
        for strips in _cuts(plan, cut):
            for fewer in _fewer_at_once(Schedule(in_flight, batch, strips)):
                yield replace(fewer, half=half)


def _cuts(plan: TilePlan, cut: Callable[[int, int], tuple[Strip, ...]]) -> Iterator[tuple[Strip, ...]]:
    """In one strip, in two, and so on, until a cut gives no more strips than the one before."""
    axis = cut_axis(plan)
    for count in range(1, most_strips(plan, axis) + 1):
        strips = cut(axis, count)
        if len(strips) < count:
            return
        yield strips


def _fewer_at_once(schedule: Schedule) -> Iterator[Schedule]:
    """`course`, then half as many requests each time, then half as many tiles in one, down to a single tile."""
    for in_flight in _halvings(schedule.in_flight):
        yield replace(schedule, in_flight=in_flight)
    for batch in itertools.islice(_halvings(schedule.batch), 1, None):
        yield replace(schedule, in_flight=1, batch=batch)


def _halvings(number: int) -> Iterator[int]:
    while number:
        yield number
        number //= 2
