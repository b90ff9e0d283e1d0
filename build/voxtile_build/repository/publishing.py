"""Swaps finished entries into a model repository, so that nothing half-built is ever seen; one build at a time.

Either all entries of a build stay in the repository, or none: a build that ends early, also by `kill -9` or a power
cut, is undone, at the latest when the next one begins. Knows folders, not what they hold.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from voxtile_build.errors import RepositoryError
from voxtile_build.repository.durable import sync_tree
from voxtile_build.repository.journal import Journal, Move, inode_of, read_journal

LOCK = ".voxtile-build.lock"
LOCK_SECONDS = 2
"""How long a build waits for the lock: a build that was killed gives it back when the system has cleared it away."""
PROBE = ".voxtile-build.probe"
AT_FDCWD = -100
RENAME_EXCHANGE = 2
NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM)

Result = TypeVar("Result")


@contextmanager
def staging(repository: Path) -> Iterator[Path]:
    """An empty folder on the repository's file system; meanwhile no other build can change the repository.

    It lies beside the repository, because Triton takes every folder inside for a model. It is removed at the end. What
    a killed build left behind is undone and removed at the start.

    Raises:
        RepositoryError: another build is running, or the repository cannot be written. Errors of what is done with the
            folder pass as they are.
    """
    repository = _real(repository)
    work = repository.parent / f".{repository.name}.building"
    with _locked(repository):
        _speaking_of(repository, lambda: _prepare(repository, work))
        try:
            yield work
        finally:
            _speaking_of(repository, lambda: _clear(repository, work))


def check_writable(repository: Path) -> None:
    """Refuse what `staging` could not use, before hours are spent; nothing is written.

    Raises:
        RepositoryError: it is no folder, or it or the folder around it cannot be written.
    """
    place = _real(repository)
    for folder in (place, place.parent):
        found = next(one for one in (folder, *folder.parents) if os.path.lexists(one))
        if not found.is_dir():
            raise _no_folder(repository)
        try:
            tempfile.TemporaryFile(dir=found).close()  # rights alone do not tell: nothing can be made in /proc
        except OSError as error:
            raise RepositoryError(
                f"{repository}: expected a repository that can be written, found that nothing can be made in {found} "
                f"({error.strerror or error}); give --repository a folder that you may write to, as its parent folder"
            ) from None


def _no_folder(repository: Path) -> RepositoryError:
    return RepositoryError(f"{repository}: expected a folder as the repository, found a file; give another one")


def publish(
    staged: Path, repository: Path, names: Sequence[str], obsolete: Sequence[str] = (), withdrawn: Sequence[str] = ()
) -> None:
    """Swap entries into a repository, in order; then remove obsolete ones.

    If one step fails, `staging` undoes all of them at its end.

    Args:
        staged: the folder of `staging` that holds the new entries; replaced and removed entries end up there.
        repository: the repository.
        names: of the new entries, those that others refer to first.
        obsolete: names of entries to remove.
        withdrawn: names of entries that must not be seen beside the new ones; they are taken away before the first
            swap.

    Raises:
        RepositoryError: the repository cannot be written; it is then as it was.
    """
    repository = _real(repository)
    _speaking_of(repository, lambda: _publish(staged, repository, names, obsolete, withdrawn))


def _publish(
    staged: Path, repository: Path, names: Sequence[str], obsolete: Sequence[str], withdrawn: Sequence[str]
) -> None:
    new = {name: os.lstat(staged / name).st_ino for name in names}
    old = {name: inode_of(repository / name) for name in (*names, *obsolete)}
    moves = tuple(
        Move(name, old[name], new.get(name), name in withdrawn)
        for name in (*names, *obsolete)
        if name in new or old[name] is not None
    )
    for name in names:
        sync_tree(staged / name)
    journal = Journal(staged, repository, moves)
    journal.write()
    _carry_out(journal, moves, {move: move.new for move in moves})
    journal.remove()  # from here on, the new entries stay


def _undo(journal: Journal) -> None:
    """Bring every old entry back, in the opposite order, and take new ones away; may be repeated after a crash."""
    backwards = journal.moves[::-1]
    moves = sorted(backwards, key=lambda move: move.withdrawn)
    _carry_out(journal, moves, {move: move.old for move in moves})
    journal.remove()


def _carry_out(journal: Journal, moves: Sequence[Move], wanted: Mapping[Move, int | None]) -> None:
    """Bring the wanted inode of each move to its place, or take away what is there; what is in place stays."""
    for move in moves:
        if move.withdrawn and inode_of(journal.repository / move.name) != wanted[move]:
            _place(journal, move, None)
    for move in moves:
        _place(journal, move, wanted[move])


def _place(journal: Journal, move: Move, wanted: int | None) -> None:
    place = journal.repository / move.name
    found = inode_of(place)
    if found not in (None, move.old, move.new):
        raise journal.lost(move)
    if found == wanted:
        return
    if found is not None and wanted is not None and _exchange(journal.find(move, wanted), place):
        return
    source = None if wanted is None else journal.find(move, wanted)
    if found is not None:
        os.rename(place, journal.parking(move, found))
    if source is not None:
        os.rename(source, place)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step (Linux); False if the file system cannot do that."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(other))


def _prepare(repository: Path, work: Path) -> None:
    _clear(repository, work)
    work.mkdir()
    _check_renames(repository, work)


def _clear(repository: Path, work: Path) -> None:
    """Undo what was not completed, then remove the folder."""
    journal = read_journal(work, repository)
    if journal is not None:
        _undo(journal)
    shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _locked(repository: Path) -> Iterator[None]:
    def opened() -> int:
        if repository.exists() and not repository.is_dir():
            raise _no_folder(repository)
        repository.mkdir(parents=True, exist_ok=True)
        # Triton ignores files at the top of a repository, but not folders.
        return os.open(repository / LOCK, os.O_RDWR | os.O_CREAT, 0o666)

    lock = _speaking_of(repository, opened)
    try:
        _speaking_of(repository, lambda: _take(lock, repository))
        yield
    finally:
        os.close(lock)


def _take(lock: int, repository: Path) -> None:
    last = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > last:
                raise RepositoryError(
                    f"{repository}: another build is at work on this repository; wait until it has ended"
                ) from None
            time.sleep(0.1)


def _check_renames(repository: Path, work: Path) -> None:
    """Refuse a mount point before hours of building: between two mounts nothing can be renamed."""
    probe = work / PROBE
    probe.touch()
    try:
        os.rename(probe, repository / PROBE)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        raise RepositoryError(
            f"{repository}: expected the repository and its parent folder on one file system, so that entries "
            "appear by rename; found a mount point: use a folder inside it as the repository"
        ) from None
    (repository / PROBE).unlink()


def _real(repository: Path) -> Path:
    """The folder that links lead to; a circle of links raises nothing here, but where the folder is made."""
    return Path(os.path.realpath(repository))


def _speaking_of(repository: Path, act: Callable[[], Result]) -> Result:
    """The result of `act`; its OSError becomes an error about the repository."""
    try:
        return act()
    except OSError as error:
        place = f" ({error.filename})" if error.filename not in (None, str(repository)) else ""
        raise RepositoryError(
            f"{repository}: the repository cannot be written: {error.strerror or error}{place}; give --repository a "
            "folder that you may write to, as its parent folder, with room for the model"
        ) from error
