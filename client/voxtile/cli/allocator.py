"""Restricts glibc's malloc to one arena; only commands do so, the library does not."""

from __future__ import annotations

import ctypes

M_ARENA_MAX = -8
"""glibc's malloc.h."""


def limit_malloc_arenas() -> None:
    """Makes all threads of this process allocate from one arena, so that one reuses what another has freed.

    By default each thread has an arena of its own. This costs a client tens of MiB, because one thread allocates the
    scores of a tile and another frees them. Call it before threads start. It does nothing where the C library is not
    glibc.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(M_ARENA_MAX, 1)
