"""The folder in which the listener keeps what it takes, so that nothing is lost whenever its process dies.

What a series is, is read from the names of its files alone. No name holds a word or a UID of an object: each is a keyed
hash, whose key lies in the folder. Knows nothing of DICOM.

    SPOOL/key, lock, audit.jsonl
    SPOOL/series/CASE/objects/INSTANCE-CONTENT.dcm    an object, named after its UID and its bytes
    SPOOL/series/CASE/senders.json                    the AE titles that sent it
    SPOOL/series/CASE/open                            an association that carried it has not ended well
    SPOOL/series/CASE/lacks.json                      which objects came and are not kept
    SPOOL/series/CASE/begun.json                      how often it was begun to be segmented
    SPOOL/series/CASE/result/                         what was made of it, whole
    SPOOL/series/CASE/done.json                       what of it is done
    SPOOL/told/CASE                                   somebody said that it is complete
    SPOOL/work/                                       what is in work; emptied at each start
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from voxtile.errors import InputError, OutputError
from voxtile.io.atomic import atomic_file

HASH_LENGTH = 20
"""Hexadecimal digits of a name: 80 bits, which no two series share by chance."""

MARK = "key"
"""The file by which a folder is told to be a spool."""

CONTENT_LENGTH = 16


class Spool:
    """A spool that this process alone uses.

    Attributes:
        folder: where it lies.
    """

    def __init__(self, folder: Path, key: bytes) -> None:
        self.folder = folder
        self._key = key

    @property
    def series(self) -> Path:
        """The folder with one for each series."""
        return self.folder / "series"

    @property
    def work(self) -> Path:
        """The folder of what is in work."""
        return self.folder / "work"

    @property
    def told(self) -> Path:
        """The folder with a file for each series that somebody said is complete."""
        return self.folder / "told"

    def name_of(self, *uids: str) -> str:
        """A name for UIDs, from which nobody without the key can tell them."""
        return hmac.new(self._key, "\0".join(uids).encode(), hashlib.sha256).hexdigest()[:HASH_LENGTH]

    def free_bytes(self) -> int:
        """What may still be written on its disk."""
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_frsize


def content_of(data: bytes) -> str:
    """A name for bytes."""
    return hashlib.sha256(data).hexdigest()[:CONTENT_LENGTH]


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Spool]:
    """Opens a spool, which is made where it is not there, and keeps other processes out of it.

    Raises:
        InputError: another listener uses it, or it is a folder of something else.
        OutputError: it cannot be made or written.
    """
    try:
        make_folder(folder)
        _check_own(folder)
        folder.chmod(0o700)
        with (folder / "lock").open("a") as lock:
            _lock(lock.fileno(), folder)
            spool = Spool(folder, _key_of(folder / MARK))
            shutil.rmtree(spool.work, ignore_errors=True)
            for each in (spool.series, spool.work, spool.told):
                make_folder(each)
            yield spool
    except OSError as error:
        raise OutputError(f"{folder}: cannot be used as a spool ({error.strerror or error})") from None


def is_name(text: str) -> bool:
    """Whether a text may be a name that a spool gave."""
    return len(text) == HASH_LENGTH and not {*text} - {*"0123456789abcdef"}


def make_folder(folder: Path) -> None:
    """Makes a folder that is still there after the machine has lost its power. Raises OSError."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Makes what was named in a folder durable. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(file: Path, value: Any) -> None:
    """Writes a value whole or not at all. Raises OutputError."""
    with atomic_file(file) as stream:
        stream.write(json.dumps(value).encode())


def read_json(file: Path) -> Any:
    """The value in a file; None where there is none, or no JSON: no file here is ever half-written by the listener."""
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None


def _check_own(folder: Path) -> None:
    """Refuses a folder that holds something and is no spool: a spool is emptied of what nobody needs any more.

    Raises:
        InputError: it is none.
    """
    if (folder / MARK).is_file():
        return
    if any(each.name != "lock" and not each.name.startswith(".voxtile-") for each in folder.iterdir()):
        raise InputError(
            f"{folder}: expected a new or an empty folder as the spool, found one that holds something else; name a "
            "folder of its own"
        )


def _lock(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"{folder}: expected a spool of its own, found one that another listener uses") from None


def _key_of(file: Path) -> bytes:
    """The key of the spool's names; without it, what is in the spool would be found under no name."""
    if not file.exists():
        with atomic_file(file) as stream:
            stream.write(secrets.token_bytes(32))
    key = file.read_bytes()
    if len(key) != 32:
        raise OutputError(f"{file}: expected the 32 bytes of the spool's key, found {len(key)}; restore the file")
    return key
