"""Gives one input to a reader and says what went wrong: an error that is not the reader's own, or a touch outside.

While the reader runs, an audit hook watches what it opens for writing, removes, starts or connects to.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any

from tests.fuzz.targets import Target

FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.Popen",
    "socket.connect",
    "socket.getaddrinfo",
)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CHANGING = (
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
    "shutil.rmtree",
)

_watched: list[Any] = []
"""The folder that may be written to and the list of what was done outside, while a reader runs."""


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watched:
        return
    allowed, found = _watched
    if event in FORBIDDEN:
        found.append(f"{event} {arguments!r}"[:300])
    elif event == "open":
        path, mode, flags = arguments
        if (isinstance(flags, int) and flags & WRITING) and not _inside(path, allowed):
            found.append(f"opened {path!r} for writing ({mode})")
    elif event in CHANGING and not _inside(arguments[0], allowed):
        found.append(f"{event} {arguments[0]!r}")


def _inside(path: Any, folder: str) -> bool:
    try:
        return os.path.abspath(os.fsdecode(path)).startswith(folder)
    except (TypeError, ValueError):
        return True


sys.addaudithook(_audit)


class Finding(Exception):
    """What a reader did wrong; `key` is the same for findings with one cause."""

    def __init__(self, key: str, text: str) -> None:
        super().__init__(text)
        self.key = key


def probe(target: Target, data: bytes) -> None:
    """Reads `data`.

    Raises:
        Finding: the reader raised an error that is not its own, or touched something outside its folder.
    """
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    outside: list[str] = []
    errors = target.errors()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _watched[:] = [str(folder), outside]
            try:
                target.read(data, folder)
            except errors as error:
                _watched.clear()
                _check_words(error)
            except Exception as error:
                _watched.clear()
                raise Finding(_key(error), traceback.format_exc()) from None
            finally:
                _watched.clear()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if outside:
        raise Finding(outside[0].split()[0], "\n".join(outside))


def _check_words(error: Exception) -> None:
    """An error is for a reader: it says something, and not pages of it."""
    text = str(error)
    if not text.strip():
        raise Finding(f"empty {type(error).__name__}", "".join(traceback.format_exception(error)))
    if len(text.splitlines()) > 30 or len(text) > 25_000:
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise Finding(f"long {type(error).__name__} {where.name}", f"{len(text)} characters: {text[:2000]}")


def _key(error: BaseException) -> str:
    """The kind of error and our own line that it came through last."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "voxtile" in frame.filename]
    ours = [frame for frame in frames if "/tests/" not in frame.filename]
    place = ours[-1] if ours else traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} {Path(place.filename).name} {place.name}"
