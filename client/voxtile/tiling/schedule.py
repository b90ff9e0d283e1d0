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

MOST_ON_THE_WAY = 256 * 2**20
"""Bytes of requests and answers that are on their way to one server at once, unless the fewest that may be are more."""

LEAST_IN_FLIGHT = 2
"""With one request computed and one waiting, an engine never idles."""


@dataclass(frozen=True)
class Course:
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
    tiles = MOST_ON_THE_WAY // max(tile_bytes, 1)
    batch = min(batch, max(tiles // LEAST_IN_FLIGHT, 1))
    return min(in_flight, max(tiles // batch, LEAST_IN_FLIGHT)), batch


def courses(
    in_flight: int, batch: int, plan: TilePlan, cut: Callable[[int, int], tuple[Strip, ...]]
) -> Iterator[Course]:
    """Every course, the one that gives up least first. cut: makes so many (second argument) strips along an axis."""
    for half in (False, True):
        for strips in _cuts(plan, cut):
            for fewer in _fewer_at_once(Course(in_flight, batch, strips)):
                yield replace(fewer, half=half)


def _cuts(plan: TilePlan, cut: Callable[[int, int], tuple[Strip, ...]]) -> Iterator[tuple[Strip, ...]]:
    """In one strip, in two, and so on, until a cut gives no more strips than the one before."""
    axis = cut_axis(plan)
    for count in range(1, most_strips(plan, axis) + 1):
        strips = cut(axis, count)
        if len(strips) < count:
            return
        yield strips


def _fewer_at_once(course: Course) -> Iterator[Course]:
    """`course`, then half as many requests each time, then half as many tiles in one, down to a single tile."""
    for in_flight in _halvings(course.in_flight):
        yield replace(course, in_flight=in_flight)
    for batch in itertools.islice(_halvings(course.batch), 1, None):
        yield replace(course, in_flight=1, batch=batch)


def _halvings(number: int) -> Iterator[int]:
    while number:
        yield number
        number //= 2
