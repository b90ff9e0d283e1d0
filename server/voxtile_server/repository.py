"""Checks a model repository before Triton reads it; knows nothing of what is in an entry."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Collection
from pathlib import Path

from voxtile_server.errors import ServerError

# tritonserver 24.10 passes paths to a shell without quotes: with any other character, a stub hangs or does worse.
PLAIN = re.compile(r"[A-Za-z0-9_./+-]+")

BACKEND = re.compile(r'^\s*backend\s*:\s*"([^"]*)"', re.MULTILINE)


def check_repository(folder: Path, backends: Collection[str]) -> list[str]:
    """The names of the models in a repository.

    Args:
        folder: the repository.
        backends: those that the server has.

    Raises:
        ServerError: it is missing, is not a folder, holds no model, holds a folder that is no model, or a model has a
            name that Triton cannot take or a backend that this server does not have.
    """
    if not folder.is_dir():
        found = "is not a folder" if folder.exists() else "does not exist"
        raise ServerError(f"the model repository {folder} {found}; build a model first, with voxtile-build")
    entries = sorted(path for path in folder.iterdir() if path.is_dir())
    if not entries:
        raise ServerError(f"the model repository {folder} holds no model; build one first, with voxtile-build")
    for entry in entries:
        # Triton takes every folder for a model, hidden ones as well, and does not start when one is not.
        if not (entry / "config.pbtxt").is_file():
            raise ServerError(
                f"the folder {entry} in the model repository has no config.pbtxt, and Triton would not "
                "start; remove the folder or build the model again"
            )
        if not PLAIN.fullmatch(entry.name):
            raise ServerError(f"Triton cannot take the model name {entry.name!r}; use letters, digits and _ . + - only")
        _require_backend(entry, backends)
    return [entry.name for entry in entries]


def uses_backend(folder: Path, backend: str) -> bool:
    """Whether an entry of the repository in `folder` names `backend`."""
    texts = (config.read_text(encoding="utf-8", errors="replace") for config in folder.glob("*/config.pbtxt"))
    return any(backend in BACKEND.findall(text) for text in texts)


def _require_backend(entry: Path, served: Collection[str]) -> None:
    """Triton would not start, and say so only in its log."""
    text = (entry / "config.pbtxt").read_text(encoding="utf-8", errors="replace")
    for backend in BACKEND.findall(text):
        if backend not in served:
            raise ServerError(
                f"the model {entry} needs Triton's backend {backend!r}, which this server does not have (it has "
                f"{', '.join(served)}); serve the repository in NVIDIA's container, see "
                "server/deploy, or build the model without this engine"
            )


def plain_link(folder: Path) -> Path | None:
    """A link to a folder whose own path Triton cannot take.

    Returns:
        The link, in a temporary folder of its own; the caller removes both. None where no link is needed.

    Raises:
        ServerError: the path of the temporary folder cannot be taken either.
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
