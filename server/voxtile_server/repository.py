"""What lies in a model repository, as far as it can be told before Triton reads it."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from voxtile_server.errors import ServerError

# tritonserver 24.10 starts a stub through a shell, unquoted: with any other character in a path it hangs, or worse.
PLAIN = re.compile(r"[A-Za-z0-9_./+-]+")


def check_repository(folder: Path) -> list[str]:
    """The names of the models in a repository.

    Raises:
        ServerError: it is missing, not a folder, holds no model, a folder that is none, or a name that cannot be.
    """
    if not folder.is_dir():
        found = "is not a folder" if folder.exists() else "does not exist"
        raise ServerError(f"the model repository {folder} {found}; build a model first (make build)")
    entries = sorted(path for path in folder.iterdir() if path.is_dir())
    if not entries:
        raise ServerError(f"the model repository {folder} holds no model; build one first (make build)")
    for entry in entries:
        # Triton takes every folder for a model, hidden ones as well, and does not start when one is none.
        if not (entry / "config.pbtxt").is_file():
            raise ServerError(
                f"the folder {entry} in the model repository has no config.pbtxt, and Triton would not "
                "start; remove it or build it again"
            )
        if not PLAIN.fullmatch(entry.name):
            raise ServerError(
                f"the model name {entry.name!r} would not survive Triton; use letters, digits and _ . + - only"
            )
    return [entry.name for entry in entries]


def plain_link(folder: Path) -> Path | None:
    """A link to a folder whose own path Triton could not take; None where it can.

    The caller removes the link and the folder around it.
    """
    if PLAIN.fullmatch(str(folder)):
        return None
    link = Path(tempfile.mkdtemp(prefix="voxtile-repository-"), "models")
    if not PLAIN.fullmatch(str(link)):
        link.parent.rmdir()
        raise ServerError(
            f"neither {folder} nor the temporary folder {link.parent.parent} has a plain path "
            "(letters, digits and _ . + - / only); set TMPDIR to one that has"
        )
    link.symlink_to(folder)
    return link
