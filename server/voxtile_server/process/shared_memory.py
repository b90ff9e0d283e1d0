"""Names for the shared memory of Triton's stubs, and the removal of what dead servers have left.

A server's names have one beginning, and its supervisor holds a lock on a file of that beginning. The kernel ends the
lock with the supervisor. No process is judged by its id, since an id means another process in another container.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterator

from voxtile_server.process import supervisor

PREFIX = "voxtile"
LOCK = "owner"  # the end of the locked file's name
LOCK_NAME = re.compile(rf"{PREFIX}_[0-9]+_[0-9a-f]+_{LOCK}")
USUAL = 256 << 20  # bytes below which a stub may find no room; Docker gives 64 MiB where nothing else is said
TRIES = 8  # another server may take a lock that is not yet held for a dead server's, and remove it


@contextlib.contextmanager
def locked_prefix() -> Iterator[tuple[str, int | None]]:
    """Gives a beginning of names that no other server has, and the lock that says that it is in use.

    Our process id is in the beginning, for people who look. The lock is a descriptor for the supervisor to inherit; it
    is None where this machine has no memory to share, and then nobody removes what a server leaves.
    """
    prefix, lock = _new_prefix()
    try:
        yield prefix, lock
    except BaseException:
        supervisor.remove_shared_memory(prefix)
        raise
    finally:
        if lock is not None:
            os.close(lock)


def leave_key(prefix: str, port: int, key: str) -> None:
    """Leave a server's key where clients of this user look for it by the server's port, and nobody else can read it.

    It goes as everything with this prefix. Without memory to share, clients need no key: nothing is left.
    """
    with contextlib.suppress(OSError):
        file = os.open(supervisor.SHARED_MEMORY / f"{prefix}key-{port}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with open(file, "w", encoding="ascii") as opened:
            opened.write(key)


def too_small() -> str:
    """What to say where the machine's shared memory is small, as in a container that was given none; else nothing."""
    try:
        found = os.statvfs(supervisor.SHARED_MEMORY)
    except OSError:
        return ""
    size = found.f_blocks * found.f_frsize
    if size >= USUAL:
        return ""
    return f", with {size >> 20} MiB of shared memory: give the container more of it (--shm-size 1g)"


def remove_stale() -> None:
    """Remove what servers of this user have left whose supervisor was killed."""
    for file in supervisor.SHARED_MEMORY.glob(f"{PREFIX}_*_{LOCK}"):
        if LOCK_NAME.fullmatch(file.name):
            with contextlib.suppress(OSError), _lock_of_the_dead(file):
                supervisor.remove_shared_memory(file.name.removesuffix(LOCK))


def _new_prefix() -> tuple[str, int | None]:
    for _ in range(TRIES):
        prefix = f"{PREFIX}_{os.getpid()}_{secrets.token_hex(4)}_"
        lock = _new_lock(f"{prefix}{LOCK}")
        if lock is not None:
            return prefix, lock
    return prefix, None


def _new_lock(name: str) -> int | None:
    """Make and lock a file; None where it cannot be made, or was removed at once."""
    file = supervisor.SHARED_MEMORY / name
    try:
        descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), file.lstat()):
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None


@contextlib.contextmanager
def _lock_of_the_dead(file: os.PathLike[str]) -> Iterator[None]:
    """Hold a lock that nobody holds within the block; OSError where it is held, or is no lock of this user."""
    descriptor = os.open(file, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise PermissionError(f"{file} is no lock of ours")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
