"""Memory shared with a server on this machine, so that tiles and scores do not pass through gRPC.

A region has a name under /dev/shm only while the server maps it, so a client that is killed leaves nothing behind;
should it die in just that moment, the next client clears up. Knows nothing of tiles or models: bytes in, bytes out.
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

SHM = Path("/dev/shm")
PREFIX = "voxtile"

REGISTERING_S, FORGETTING_S = 10.0, 2.0
"""How long a server may take to map a region, and to let go of one."""

_numbers = itertools.count()


class Region:
    """One region of `size` bytes that this process and the server behind `client` both see.

    Raises OSError where this machine has no shared memory, and tritonclient's InferenceServerException where the
    server cannot map it (another machine, another container, shared memory switched off).
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
                client.register_system_shared_memory(self.name, f"/{self.name}", size, client_timeout=REGISTERING_S)
        finally:
            os.close(descriptor)

    def array(self, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int = 0) -> NDArray[Any]:
        """A view of the region's bytes."""
        return np.ndarray(shape, dtype, self._memory, offset)

    def close(self) -> bool:
        """Lets the server and this process forget the region; False where the server still uses it, to be tried again.

        A server that is gone has forgotten it already.
        """
        from tritonclient.utils import InferenceServerException

        try:
            self._client.unregister_system_shared_memory(self.name, client_timeout=FORGETTING_S)
        except InferenceServerException as error:
            if "in use" in (error.message() or ""):
                return False
        with contextlib.suppress(BufferError):  # a view is still held; the memory goes with the last one
            self._memory.close()
        return True


@contextlib.contextmanager
def _named(descriptor: int, path: Path) -> Iterator[None]:
    """Gives the nameless file a name for the time of the block."""
    descriptors = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY)
    try:  # with a folder's descriptor Python calls linkat, which follows the entry to the file; link would not
        os.link(str(descriptor), path, src_dir_fd=descriptors, follow_symlinks=True)
    finally:
        os.close(descriptors)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def forget_dead_clients(client: Any) -> None:
    """Clears up after clients on this machine that did not live to do it: regions registered, and names left."""
    for path in SHM.glob(f"{PREFIX}-*"):
        if _owner_is_gone(path.name):
            path.unlink(missing_ok=True)
    for region in client.get_system_shared_memory_status(client_timeout=5.0).regions:
        if _owner_is_gone(region):
            client.unregister_system_shared_memory(region, client_timeout=5.0)


def _owner_is_gone(name: str) -> bool:
    """Whether `name` is a region of ours whose process has ended (another may have its id by now)."""
    prefix, pid, start = (name.split("-") + [""] * 3)[:3]
    return prefix == PREFIX and pid.isdigit() and _process_start(int(pid)) != start


def _process_start(pid: int) -> str:
    """When the process started, in clock ticks since boot; empty if there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return fields[19]
