"""Writes files that appear whole or not at all. Knows nothing of their content."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from voxtile.errors import OutputError


@contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """Yields a new binary file, which gets the name `path` when the block ends without an error, else is removed.

    It is written beside `path` under a hidden name, flushed to the disk and renamed. So a reader, or a machine that
    lost power, finds either the old file or the complete new one.

    Raises:
        OutputError: the file cannot be written.
    """
    target = Path(path)
    _refuse_folder(target)
    temporary = target.parent / f".{target.name}.{secrets.token_hex(6)}.part"
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
        _sync_folder(target.parent)
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror or error})") from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def check_writable(path: str | Path) -> None:
    """Checks, before any work is done, that a file of this name can be written.

    Raises:
        OutputError: it cannot.
    """
    target = Path(path)
    folder = target.parent
    if not folder.is_dir():
        raise OutputError(f"{target}: expected a folder {folder} to write into, found none; make it first")
    _refuse_folder(target)
    probe = folder / f".{target.name}.{secrets.token_hex(6)}.part"
    try:
        with probe.open("xb"):
            pass
        probe.unlink()
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror or error})") from None


def _refuse_folder(target: Path) -> None:
    if target.is_dir():
        raise OutputError(f"{target}: expected the name of a file, found a folder")


def _sync_folder(folder: Path) -> None:
    """Makes the rename itself durable. Some file systems refuse to sync a folder; the file is complete all the same."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
