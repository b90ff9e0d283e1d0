"""What a process of ours asks of the C library's allocator; libraries leave it as it is."""

from __future__ import annotations

import ctypes

M_ARENA_MAX = -8
"""glibc's malloc.h."""


def limit_malloc_arenas() -> None:
    """Lets all threads of this process allocate from one arena: what one has freed, another takes.

    By default each keeps its own, which costs a client tens of MiB: tiles' scores are made by one thread and let go by
    another. For a process that does nothing else, before its threads start. Does nothing where glibc is not the
    allocator.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(M_ARENA_MAX, 1)
