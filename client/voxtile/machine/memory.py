"""How much memory this process can have at most. Knows nothing of what it is used for."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

MIB = 1024**2

CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where a container's limit stands, for both versions of control groups; without a limit, it is a word or immense."""


def machine_bytes() -> int:
    """Returns the bytes of the machine's memory, or of the container's where that is less."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in CGROUP_LIMITS:
        with suppress(OSError, ValueError):
            limits.append(int(path.read_text()))
    return min(limits)
