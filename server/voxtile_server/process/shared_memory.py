"""Names for the shared memory of Triton's stubs, and the removal of what dead servers have left."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from voxtile_server.process.supervisor import SHARED_MEMORY, remove_shared_memory

PREFIX = "voxtile"


def new_prefix() -> str:
    """A beginning of names that no other server has; our process id is in it, which tells who has left a region."""
    return f"{PREFIX}_{os.getpid()}_{secrets.token_hex(4)}_"


def remove_stale() -> None:
    """Remove what servers have left whose owner and supervisor were both killed."""
    for region in SHARED_MEMORY.glob(f"{PREFIX}_*_*"):
        owner = region.name.split("_")[1]
        if owner.isdigit() and not Path("/proc", owner).exists():
            remove_shared_memory(region.name)
