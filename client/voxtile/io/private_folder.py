"""Makes a temporary folder for scans of patients: only this user may look into it, and it is removed, sooner or later.

A process that was killed cannot remove its folder: the next one on this machine does. Knows nothing of what lies there.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from voxtile.errors import OutputError


@contextlib.contextmanager
def private_folder(kind: str, where: Path | None = None) -> Iterator[Path]:
    """A new folder, which is locked within the block and removed after it.

    Args:
        kind: a word for what it is for, which its name holds.
        where: the folder in which it is made; None for that of temporary files (`TMPDIR`).

    Raises:
        OutputError: it cannot be made.
    """
    prefix = f"voxtile-{kind}-{os.uname().nodename}-"  # several machines may share the parent, and not the locks
    try:
        parent = Path(tempfile.gettempdir() if where is None else where)
        _remove_left(parent, prefix)
        # It gets its name once it is locked, so that nobody takes it for left behind.
        made = Path(tempfile.mkdtemp(prefix=".voxtile-", dir=parent))
    except OSError as error:
        raise OutputError(
            f"{where or 'TMPDIR'}: no folder can be made there for scans ({error.strerror or error}); "
            f"{'set TMPDIR to' if where is None else 'name'} another place"
        ) from None
    lock = os.open(made, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: then nobody can lock, and it is left alone
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        made = made.rename(parent / f"{prefix}{made.name.rpartition('-')[2]}")
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(lock)


def _remove_left(parent: Path, prefix: str) -> None:
    """Removes this user's folders whose process has ended."""
    try:
        left = [one.path for one in os.scandir(parent) if one.name.startswith(prefix)]
    except OSError:
        return  # it cannot be listed; whether something can be made there is seen next
    for path in left:
        with contextlib.suppress(OSError):  # of another user, or just removed, or its process is at work
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(folder).st_uid == os.geteuid():
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(folder)
