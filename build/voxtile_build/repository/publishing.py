"""Swaps finished entries into a model repository, so that nothing half-built is ever seen; one build at a time.

Knows folders, not what they hold.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from voxtile_build.errors import RepositoryError

LOCK = ".voxtile-build.lock"
AT_FDCWD = -100
RENAME_EXCHANGE = 2


@contextmanager
def staging(repository: Path) -> Iterator[Path]:
    """An empty folder on the repository's file system; meanwhile no other build can change the repository.

    It lies beside the repository, because Triton takes every folder inside for a model. It is removed at the end. A
    folder that a killed build left behind is removed at the start.

    Raises:
        RepositoryError: another build is running, or the repository cannot be written.
    """
    repository = repository.resolve()
    work = repository.parent / f".{repository.name}.building"
    try:
        repository.mkdir(parents=True, exist_ok=True)
        with _locked(repository):
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            try:
                _check_same_file_system(repository, work)
                yield work
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise RepositoryError(f"{repository}: the repository cannot be written: {error.strerror or error}") from error


def publish(staged: Path, repository: Path, names: Sequence[str], obsolete: Sequence[str] = ()) -> None:
    """Swap entries into a repository, in order; then remove obsolete ones.

    If an entry cannot be swapped, those before it are swapped back.

    Args:
        staged: the folder that holds the new entries; replaced and removed entries end up there.
        repository: the repository.
        names: of the new entries.
        obsolete: names of entries to remove.
    """
    repository = repository.resolve()
    done: list[str] = []
    try:
        for name in names:
            _swap(staged / name, repository / name)
            done.append(name)
    except OSError:
        for name in reversed(done):
            _swap_back(staged / name, repository / name)
        raise
    for name in obsolete:
        if (repository / name).is_dir():
            _rename_away(repository / name, staged)


def _swap(new: Path, place: Path) -> None:
    if not place.exists():
        new.rename(place)
    elif not _exchange(new, place):
        old = new.with_name(new.name + ".old")
        place.rename(old)
        new.rename(place)
        old.rename(new)


def _swap_back(old: Path, place: Path) -> None:
    if old.exists():
        _swap(old, place)
    else:
        place.rename(old)


def _rename_away(folder: Path, staged: Path) -> None:
    folder.rename(staged / f"{folder.name}.obsolete")


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step (Linux); False if the file system cannot do that."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM):
        return False
    raise OSError(code, os.strerror(code), str(other))


@contextmanager
def _locked(repository: Path) -> Iterator[None]:
    # Triton ignores files at the top of a repository, but not folders.
    with (repository / LOCK).open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RepositoryError(
                f"{repository}: another build is at work on this repository; wait until it has ended"
            ) from None
        yield


def _check_same_file_system(repository: Path, work: Path) -> None:
    if repository.stat().st_dev != work.stat().st_dev:
        raise RepositoryError(
            f"{repository}: expected the repository and its parent folder on one file system, so that entries "
            "appear by rename; found a mount point: use a folder inside it as the repository"
        )
