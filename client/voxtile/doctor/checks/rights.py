"""What in a repository the user may not read who serves it: this one, or that of a container. Reads nothing itself."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from voxtile.doctor.entry import Repository, files_in, may_read
from voxtile.doctor.finding import Finding
from voxtile.doctor.releases import Release

LOCK = ".voxtile-build.lock"
"""The file that a build locks; nobody else needs it."""

CONTAINER_USER = 1000
"""The user of the derived image and of the Kubernetes files; compose.yaml's root has no right to read others' files."""


def check_rights(repository: Repository, release: Release) -> Iterator[Finding]:
    """What may not be read, the topmost of it alone.

    Args:
        repository: the repository.
        release: that is to serve it: the embedded server runs as this user, a container as another.
    """
    closed: set[Path] = set()
    for path in (repository.folder, *files_in(repository)):
        if path.name == LOCK or not closed.isdisjoint(path.parents) or path.is_symlink():
            continue
        with contextlib.suppress(OSError):
            if found := _fault(path, release):
                closed.add(path)
                yield found


def _fault(path: Path, release: Release) -> Finding | None:
    status = path.stat()
    mode, todo = f"(mode {status.st_mode & 0o777:o})", f"chmod -R a+rX {path}"
    if not release.embedded and not container_can_read(status):
        who = f"user {CONTAINER_USER} of the container"
    elif may_read(path):
        return None
    elif release.embedded:
        who = "this user"
    else:
        what = f"this user may not read it {mode}"
        return Finding("warning", "not-readable", str(path), what, "what is in it was not examined", todo)
    what = f"{who} may not read it {mode}"
    return Finding("error", "not-readable", str(path), what, "the server could not load what is in it", todo)


def container_can_read(status: os.stat_result) -> bool:
    """Whether user 1000 may read a file, or look into a folder: as its owner, in its group, or as anybody."""
    needed = stat.S_IROTH | (stat.S_IXOTH if stat.S_ISDIR(status.st_mode) else 0)
    if status.st_uid == CONTAINER_USER:
        needed <<= 6
    elif status.st_gid == CONTAINER_USER:
        needed <<= 3
    return status.st_mode & needed == needed
