"""Refuses what is no regular file before it is opened: a pipe that nobody writes to would be waited for, for ever.

Knows nothing of what files hold.
"""

from __future__ import annotations

from pathlib import Path

from voxtile.errors import InputError


def check_plain_file(path: Path, wanted: str) -> None:
    """Checks that a path is that of a regular file, or of a link to one.

    Args:
        path: the path.
        wanted: what is expected there, in words.

    Raises:
        InputError: it is not, or there is nothing.
    """
    if path.is_file():
        return
    try:
        path.stat()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    found = "a folder" if path.is_dir() else "a pipe or a device"
    raise InputError(f"{path}: expected {wanted} in a plain file, found {found}")
