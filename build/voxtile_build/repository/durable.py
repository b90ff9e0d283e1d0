"""Makes files and folders survive a power cut. Knows neither entries nor Triton."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

NOT_SYNCED = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)
"""What file systems answer that have nothing to write out, such as some network file systems for a folder."""


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk.

    Raises:
        OSError: the disk is full or fails.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NOT_SYNCED:
            raise
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """`sync` for a folder and everything in it."""
    for place, _, files in os.walk(folder, topdown=False, onerror=_raise):
        for name in files:
            sync(Path(place, name))
        sync(Path(place))


def _raise(error: OSError) -> None:
    raise error


def replace_text(path: Path, text: str) -> None:
    """Write a file in one step: after a crash or a power cut it holds the old text or the new one.

    Raises:
        OSError: it cannot be written; the old text then stays.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        sync(partial)
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    sync(path.parent)
