"""What the tests ask of shared memory: the names in /dev/shm, and what a server maps."""

from __future__ import annotations

import os
from pathlib import Path

from tritonclient.grpc import InferenceServerClient

from voxtile.triton.connection import local_key

SHARED_MEMORY = Path("/dev/shm")


def names_of(process: int) -> set[str]:
    """The names that the clients in a process have in /dev/shm."""
    return {path.name for path in SHARED_MEMORY.glob(f"voxtile-{process}-*")}


def mapped(url: str, process: int | None = None) -> set[str]:
    """The regions of a process, by default this one, that the server at `url` maps."""
    client = InferenceServerClient(url)
    try:
        names = client.get_system_shared_memory_status(headers=local_key(url)).regions
        return {name for name in names if name.startswith(f"voxtile-{process or os.getpid()}-")}
    finally:
        client.close()
