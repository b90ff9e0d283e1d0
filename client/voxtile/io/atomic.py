"""Writes files that appear whole or not at all. Knows nothing of their content."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import BinaryIO

from voxtile.errors import DiskFullError, OutputError

ANY_MAY_WRITE = 0o222
"""Mode bits: root may write to every file, so these say whether the owner protected it."""

_before_naming: ContextVar[Callable[[Path, Path], None] | None] = ContextVar("before_naming", default=None)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """Yields a new binary file, which gets the name `path` when the block ends without an error, else is removed.

    It is written beside `path` under a hidden name, flushed to the disk and renamed. So a reader, or a machine that
    lost power, finds either the old file or the complete new one.

    Raises:
        OutputError: the file cannot be written.
    """
    target = Path(path)
    check_replaceable(target)
    temporary = target.parent / hidden_name()
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if (tell := _before_naming.get()) is not None:
            tell(temporary, target)
        temporary.replace(target)
        _sync_folder(target.parent)
    except OSError as error:
        raise cannot_be("written", target, error) from None
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def before_naming(tell: Callable[[Path, Path], None]) -> Iterator[None]:
    """Within the block, on this thread, `atomic_file` calls tell(finished, path) before a file gets its name.

    If that raises, the file does not get it.
    """
    token = _before_naming.set(tell)
    try:
        yield
    finally:
        _before_naming.reset(token)


def cannot_be(what: str, path: Path, error: OSError) -> OutputError:
    """The error of a file that cannot be written or made, for the reason that the system gives."""
    kind = DiskFullError if is_full(error) else OutputError
    return kind(f"{path}: cannot be {what} ({error.strerror or error})")


def is_full(error: BaseException) -> bool:
    """Whether an error says that a disk of this machine, or this user's share of it, is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def check_writable(path: str | Path) -> None:
    """Checks, before any work is done, that a file of this name can be written.

    Raises:
        OutputError: it cannot.
    """
    target = Path(path)
    folder = target.parent
    if not folder.is_dir():
        raise OutputError(f"{target}: expected a folder {folder} to write into, found none; make it first")
    check_replaceable(target)
    probe = folder / hidden_name()
    try:
        with probe.open("xb"):
            pass
        probe.unlink()
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror or error})") from None


def check_replaceable(path: Path) -> None:
    """Checks that `path` is free, or is a file that may be replaced.

    Raises:
        OutputError: it is a folder, a device or a pipe, is write-protected, or cannot be a name here.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from None
    if stat.S_ISDIR(mode):
        raise OutputError(f"{path}: expected the name of a file, found a folder")
    if not stat.S_ISREG(mode):
        raise OutputError(f"{path}: expected the name of a file, found a device or a pipe, which would be replaced")
    if not mode & ANY_MAY_WRITE or not os.access(path, os.W_OK):
        raise OutputError(f"{path}: expected a file that may be replaced, found a protected one; choose another name")


def hidden_name() -> str:
    """A new name for what is not finished; short, so that no name that a file system takes becomes too long by it."""
    return f".voxtile-{secrets.token_hex(6)}.part"


def _sync_folder(folder: Path) -> None:
    """Makes the rename itself durable. Some file systems refuse to sync a folder; the file is complete all the same."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
