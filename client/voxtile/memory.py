"""How much memory a segmentation will take, told before the first tile.

A prediction is a sum of buffers that are known by shape; each term is named, so that an error can say what to change.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from .errors import MemoryLimitError

MIB = 1024**2

RUNTIME_BYTES = 150 * MIB
"""The interpreter with everything loaded, before any scan is read: 69 MiB measured on Python 3.11, the rest is room for
gRPC's threads and for what the allocator keeps."""


def predicted_bytes(terms: Mapping[str, int]) -> int:
    """The sum of all buffers and of the interpreter itself."""
    return RUNTIME_BYTES + sum(terms.values())


def check_limit(terms: Mapping[str, int], max_ram: int | None) -> None:
    """Raises MemoryLimitError, with the largest terms, where the prediction lies above `max_ram` bytes."""
    needed = predicted_bytes(terms)
    if max_ram is None or needed <= max_ram:
        return
    largest = sorted(terms.items(), key=lambda term: -term[1])[:3]
    shares = ", ".join(f"{name} {size / MIB:.0f} MiB" for name, size in largest)
    raise MemoryLimitError(
        f"this scan needs about {needed / MIB:.0f} MiB ({shares}), and --max-ram allows {max_ram / MIB:.0f} MiB; "
        "with one tile at a time; allow more"
    )


def stitching_bytes(padded: tuple[int, ...], roi: tuple[int, ...], scores: int) -> int:
    """Sums [score, depth, *plane], weights [depth, *plane] twice and one tile of scratch, float32."""
    slab = roi[0] * math.prod(padded[1:])
    return 4 * ((scores + 2) * slab + scores * math.prod(roi))
