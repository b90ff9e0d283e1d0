"""How many CPU cores this process may use. Knows nothing of what they are used for."""

from __future__ import annotations

import os


def usable_cores(at_most: int | None = None) -> int:
    """Returns the number of cores that this process may use, at least 1.

    Args:
        at_most: an upper limit, for work that more threads do not make faster.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, allowed if at_most is None else min(at_most, allowed))
