"""The folders that are written into: refuses, before hours are spent, those that cannot be. Knows nothing of models."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from voxtile_build.errors import SlimmingError

TRIAL = ".voxtile-"
"""How the name of a folder begins that is made and removed to see whether one can be."""


def check_folder(option: str, folder: Path) -> None:
    """Refuse what is no folder, and a folder that cannot be made or written into.

    Rights alone do not tell: nothing can be made in some folders, such as /proc. So it is tried, and nothing is left.

    Args:
        option: that names the folder.
        folder: need not exist.

    Raises:
        SlimmingError: says which folder, and why.
    """
    found = existing(folder)
    if not found.is_dir():
        raise SlimmingError(f"{option}: {folder}: expected a folder, or none yet, found that {found} is a file")
    try:
        with tempfile.TemporaryDirectory(prefix=TRIAL, dir=found) as trial:
            new = folder.absolute().relative_to(found.absolute())
            (Path(trial) / new).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SlimmingError(
            f"{option}: {folder}: expected a folder that can be written, found that nothing can be made in {found} "
            f"({error.strerror or error}); choose another folder"
        ) from None


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(one for one in (folder, *folder.absolute().parents) if os.path.exists(one))


@contextmanager
def made(folder: Path) -> Iterator[None]:
    """The folder and those above it, made where they are missing; those that stay empty are removed again.

    Raises:
        OSError: it cannot be made.
    """
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for one in missing:
            with suppress(OSError):
                one.rmdir()
