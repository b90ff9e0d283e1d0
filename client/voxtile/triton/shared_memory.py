"""Shares memory with a server on this machine, so that tiles and scores need not pass through gRPC.

A region has a name under /dev/shm only while the server maps it. A client that is killed therefore leaves nothing
behind; if it is killed at that very moment, the next client removes the name. Knows nothing of tiles or models.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.triton.faults import memory_in_use

SHM = Path("/dev/shm")
PREFIX = "voxtile"

MAP_TIMEOUT_S, UNMAP_TIMEOUT_S = 10.0, 2.0
"""Seconds that a server may take to map a region, and to let go of one."""

STATUS_TIMEOUT_S = 5.0
"""Seconds that a server may take to list its regions."""

_numbers = itertools.count()


class Region:
    """A region of memory that this process and one server both map.

    Args:
        client: a tritonclient.grpc.InferenceServerClient of the server.
        size: bytes.

    Raises:
        OSError: this machine has no shared memory, or too little is left.
        InferenceServerException: the server cannot map the region: it runs on another machine or in another container,
            or does not support shared memory.
    """

    def __init__(self, client: Any, size: int) -> None:
        self.size = size
        self.name = f"{PREFIX}-{os.getpid()}-{_process_start(os.getpid())}-{next(_numbers)}"
        self._client = client
        descriptor = os.open(SHM, os.O_TMPFILE | os.O_RDWR, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)  # a full /dev/shm must fail here, not as a bus error later
            self._memory = mmap.mmap(descriptor, size)
            with _named(descriptor, SHM / self.name):
                client.register_system_shared_memory(self.name, f"/{self.name}", size, client_timeout=MAP_TIMEOUT_S)
        finally:
            os.close(descriptor)

    def array(self, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int = 0) -> NDArray[Any]:
        """An array of `dtype` and `shape` over the region's bytes from `offset` on; a view, not a copy."""
        return np.ndarray(shape, dtype, self._memory, offset)

    def close(self) -> bool:
        """Unregisters the region and unmaps it.

        Returns:
            False where the server still uses the region; the caller tries again later. A server that is gone has
            forgotten it already.
        """
        from tritonclient.utils import InferenceServerException

        try:
            self._client.unregister_system_shared_memory(self.name, client_timeout=UNMAP_TIMEOUT_S)
        except InferenceServerException as error:
            if memory_in_use(error.message()):
                return False
        with contextlib.suppress(BufferError):  # a view still exists; the memory is freed with the last one
            self._memory.close()
        return True


@contextlib.contextmanager
def _named(descriptor: int, path: Path) -> Iterator[None]:
    """Names the nameless file behind `descriptor` within the block."""
    descriptors = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY)
    try:  # given a folder's descriptor, Python calls linkat, which follows the entry to the file; link does not
        os.link(str(descriptor), path, src_dir_fd=descriptors, follow_symlinks=True)
    finally:
        os.close(descriptors)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def forget_dead_clients(client: Any) -> None:
    """Removes names and registered regions that clients on this machine have left behind when they were killed."""
    for path in SHM.glob(f"{PREFIX}-*"):
        if _owner_is_gone(path.name):
            path.unlink(missing_ok=True)
    for region in client.get_system_shared_memory_status(client_timeout=STATUS_TIMEOUT_S).regions:
        if _owner_is_gone(region):
            client.unregister_system_shared_memory(region, client_timeout=STATUS_TIMEOUT_S)


def _owner_is_gone(name: str) -> bool:
    """Whether `name` is a region of Voxtile whose process has ended (another process may have its id by now)."""
    prefix, pid, start = (name.split("-") + [""] * 3)[:3]
    return prefix == PREFIX and pid.isdigit() and _process_start(int(pid)) != start


def _process_start(pid: int) -> str:
    """The start of the process in clock ticks since boot; empty where there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return fields[19]
