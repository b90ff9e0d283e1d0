"""Swaps finished entries into a model repository: nothing half-built is ever seen, one build at a time.

Knows folders, not what lies in them.
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
    """An empty folder on the repository's file system, while no other build works on the repository.

    It lies beside the repository, because Triton takes every folder within for a model. It is removed at the
    end; one that a killed build left behind is removed at the start.
    Raises RepositoryError where another build is at work, or the place cannot be written.
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
    """Swap the folders `names` of `staged` into `repository`, in this order; then remove the folders `obsolete`.

    What a folder replaces ends in `staged`. If one cannot be swapped, those before it are swapped back.
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
    """Exchange two folders in one step (Linux); False where the file system cannot."""
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
    # A file, not a folder: Triton ignores files at the top of a repository.
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
            "appear by rename; found a mount point: use a folder within it as the repository"
        )
