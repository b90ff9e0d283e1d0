"""Tells entries that a build has written from those of others, by what a build leaves in each of them.

Knows nothing of which model an entry belongs to.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from tritonclient.grpc import model_config_pb2 as pb

from voxtile_build.errors import RepositoryError
from voxtile_build.repository.card import PARAMETER
from voxtile_build.repository.config import PLACEHOLDER, read_config
from voxtile_build.repository.entries import BUILD_FACTS, CERTIFICATE, score_name

BACKEND = "voxtile"
"""The backend of entries for whole scans."""


def require_own(folders: Sequence[Path]) -> None:
    """Refuse to replace what no build has written.

    Args:
        folders: of the entries that may be replaced or removed.

    Raises:
        RepositoryError: names the first that is another's.
    """
    for folder in folders:
        if _is_others(folder):
            raise RepositoryError(
                f"{folder}: expected nothing, or an entry that was built here, found another's model; it is not "
                "replaced: give another name or another repository, or move it away"
            )


def _is_others(folder: Path) -> bool:
    if not os.path.lexists(folder):
        return False
    if not folder.is_dir():
        return True
    if all(path.is_dir() and not path.is_symlink() for path in folder.rglob("*")):
        return False  # nothing can be lost
    return not (_has_our_files(folder) or _has_our_config(folder))


def _has_our_files(folder: Path) -> bool:
    """Whether a version is certified, or holds the note of an entry without a file, whatever became of the config."""
    if any(any(folder.glob(f"*/{name}")) for name in (CERTIFICATE, BUILD_FACTS)):
        return True
    note = PLACEHOLDER.partition(" ")[2].partition(" ")[2].encode()  # what follows the kind of the entry
    with contextlib.suppress(OSError):
        return any(path.is_file() and path.read_bytes().endswith(note) for path in folder.glob("*/README"))
    return False


def _has_our_config(folder: Path) -> bool:
    try:
        config = read_config(folder)
    except RepositoryError:
        return False
    return PARAMETER in config.parameters or config.backend == BACKEND or _is_mean(config)


def _is_mean(config: pb.ModelConfig) -> bool:
    """Whether it is the config of an entry that averages scores."""
    names = [one.name for one in config.input]
    return len(names) > 1 and names == [score_name(index) for index in range(len(names))]
