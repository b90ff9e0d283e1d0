"""Shares memory with a server on this machine, so that tiles and scores need not pass through gRPC.

A region has a name under /dev/shm only while the server maps it. A client that is killed therefore leaves nothing
behind; if it is killed at that very moment, the next client removes the name. Knows nothing of tiles or models.
"""

from __future__ import annotations

import contextlib
import errno
import math
import mmap
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.machine.owners import has_ended, parse_owner, this_process
from voxtile.triton.faults import memory_in_use, no_answer_in_time

SHM = Path("/dev/shm")
PREFIX = "voxtile-"

MAP_TIMEOUT_S, UNMAP_TIMEOUT_S = 10.0, 2.0
"""Seconds that a server may take to map a region, and to let go of one."""

STATUS_TIMEOUT_S = 5.0
"""Seconds that a server may take to list its regions, or to say that it lives."""

_held: set[str] = set()
"""The names of this process's regions that are still open."""


class ServerMemory:
    """What a server maps, by name.

    Args:
        client: a tritonclient.grpc.InferenceServerClient of the server.
        headers: gives those that are sent with a call; asked for every call, since a server that is started again has
            another key.
    """

    def __init__(self, client: Any, headers: Callable[[], dict[str, str]]) -> None:
        self._client = client
        self._headers = headers

    def map(self, name: str, size: int) -> None:
        """Asks the server to map the file /dev/shm/`name`, of `size` bytes, by the same name."""
        self._client.register_system_shared_memory(
            name, f"/{name}", size, headers=self._headers(), client_timeout=MAP_TIMEOUT_S
        )

    def unmap(self, name: str) -> None:
        """Asks the server to let go of a region."""
        self._client.unregister_system_shared_memory(name, headers=self._headers(), client_timeout=UNMAP_TIMEOUT_S)

    def names(self) -> list[str]:
        """The names of all regions that the server maps, of whatever client."""
        status = self._client.get_system_shared_memory_status(headers=self._headers(), client_timeout=STATUS_TIMEOUT_S)
        return list(status.regions)

    def server_is_live(self) -> bool:
        """Whether the server answers."""
        from tritonclient.utils import InferenceServerException

        try:
            return bool(self._client.is_server_live(headers=self._headers(), client_timeout=STATUS_TIMEOUT_S))
        except InferenceServerException:
            return False


class Region:
    """A region of memory that this process and one server both map.

    That the server has mapped a file of this name does not prove that it is this file: it may have another /dev/shm.
    The caller sees it by what the server writes.

    Args:
        server: who maps the region with us.
        size: bytes.

    Attributes:
        left: whether the memory is unmapped here already, and only the server may still map it.

    Raises:
        OSError: this machine has no shared memory, or too little is left.
        InferenceServerException: the server cannot map the region: it runs on another machine or in another container,
            or does not support shared memory.
    """

    def __init__(self, server: ServerMemory, size: int) -> None:
        self.size = size
        self.left = False
        self.name = f"{PREFIX}{this_process()}-{secrets.token_hex(8)}"
        self._server = server
        descriptor = os.open(SHM, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            _allocate(descriptor, size)
            self._memory = mmap.mmap(descriptor, size)
            self._map(descriptor)
        finally:
            os.close(descriptor)

    def _map(self, descriptor: int) -> None:
        _held.add(self.name)
        try:
            with _named(descriptor, SHM / self.name):
                self._server.map(self.name, self.size)
        except BaseException:  # if the server has mapped it all the same, it is left behind, and found as such
            self.leave()
            raise

    def array(self, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int = 0) -> NDArray[Any]:
        """An array of `dtype` and `shape` over the region's bytes from `offset` on; a view, not a copy.

        The memory stays until the last view is gone, even where the region is closed before.
        """
        # np.ndarray would not hold the memory: to read it after `close` would end the process.
        return np.frombuffer(self._memory, dtype, math.prod(shape), offset).reshape(shape)

    def close(self) -> bool:
        """Unmaps the region, at the server and here.

        Returns:
            False where the server still uses the region, or has not answered in time: the caller tries again later.
            A server that is gone has forgotten it already.
        """
        from tritonclient.utils import InferenceServerException

        try:
            self._server.unmap(self.name)
        except InferenceServerException as error:
            if memory_in_use(error.message()):
                return False
            if no_answer_in_time(error.status()):
                self.leave()
                return False
        except ValueError:  # the connection has been closed by another thread
            pass
        self.leave()
        return True

    def leave(self) -> None:
        """Unmaps the region here, and leaves it to the server, from which a later `close` or client takes it."""
        self.left = True
        _held.discard(self.name)
        with contextlib.suppress(BufferError):  # a view still exists; the memory is freed with the last one
            self._memory.close()


def _allocate(descriptor: int, size: int) -> None:
    """Gives the file its memory. A full /dev/shm fails here, not later as a bus error.

    As much again is left free: a server on this machine passes tensors to its engines through /dev/shm as well.
    """
    free = os.fstatvfs(descriptor)
    if free.f_blocks and free.f_bavail * free.f_frsize < 2 * size:
        raise OSError(errno.ENOSPC, f"less than twice {size} bytes are free", str(SHM))
    os.posix_fallocate(descriptor, 0, size)


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
        with contextlib.suppress(OSError):  # a later client removes it
            path.unlink()


def forget_dead_clients(server: ServerMemory) -> None:
    """Removes names and mapped regions that processes of this user left behind when they were killed.

    What anybody else has left is left alone, and so is whatever cannot be removed.
    """
    from tritonclient.utils import InferenceServerException

    with contextlib.suppress(OSError):
        for path in SHM.glob(f"{PREFIX}*"):
            if _is_left_behind(path.name):
                with contextlib.suppress(OSError):
                    path.unlink()
    with contextlib.suppress(InferenceServerException):
        for name in filter(_is_left_behind, server.names()):
            with contextlib.suppress(InferenceServerException):  # still in use, for example
                server.unmap(name)


def _is_left_behind(name: str) -> bool:
    """Whether `name` is a region of Voxtile whose owner has ended, or a region that this process has left."""
    owner = parse_owner(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else None
    if owner is None:
        return False
    return has_ended(owner) or (owner == this_process() and name not in _held)
