"""Publishes in children, each of which dies at another system call, as under `kill -9`; nothing cleans up behind it.

Run as `python -m tests.support.cut_off_publishing FOLDER publish|repair exchange|no-exchange [WITHDRAWN…]`. The child
numbered K works in FOLDER/K/models and dies before its K-th system call. The last child ends by itself; its number is
printed.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from voxtile_build.repository import publishing

CALLS = ("mkdir", "rename", "replace", "unlink", "rmdir", "open", "fsync")
INNER = ("tiny_a", "tiny_new")
NAMES = (*INNER, "tiny")
OBSOLETE = "tiny_gone"
KEPT = "other"
KILLED = 137
_rename = os.rename  # is not counted: it stands for the build


def fill(folder: Path, text: str) -> None:
    """An entry of two files, which is whole if both say the same."""
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(text)
    (folder / "1" / "model.onnx").write_text(text)


def repository_with_old_entries(parent: Path) -> Path:
    """A model of two engines, one of which becomes obsolete, and another model; new entries beside."""
    for name in (INNER[0], "tiny", OBSOLETE, KEPT):
        fill(parent / "models" / name, "old")
    for name in NAMES:
        fill(parent / "new" / name, "new")
    return parent / "models"


def publish_new_entries(repository: Path, withdrawn: Sequence[str] = ()) -> None:
    """Replaces an engine and the public entry, adds an engine, removes one."""
    with publishing.staging(repository) as staged:
        for name in NAMES:
            _rename(repository.parent / "new" / name, staged / name)
        publishing.publish(staged, repository, NAMES, [OBSOLETE], withdrawn)


def begin_build(repository: Path) -> None:
    """A build that comes no further than its beginning, where it repairs what another one left behind."""
    with publishing.staging(repository):
        pass


@contextmanager
def counted(act: Callable[[int], None]) -> Iterator[None]:
    """Tells `act` the number of each system call that changes something, before it is made."""
    numbers = itertools.count(1)

    def before(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            act(next(numbers))
            return real(*arguments, **options)

        return call

    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(os, "fsync"))  # no test can cut the power; it is counted all the same
        for where, name in (*((os, call) for call in CALLS), (publishing, "_exchange")):
            patches.enter_context(mock.patch.object(where, name, before(getattr(where, name))))
        yield


def without_exchange() -> Any:
    """As on network file systems."""
    return mock.patch.object(publishing, "_exchange", return_value=False)


def in_child(act: Callable[[], object], killed_at: int | None = None) -> bool:
    """Whether `act` ended by itself, in a child that is killed before the system call of this number."""
    child = os.fork()
    if child == 0:
        with counted(lambda made: os._exit(KILLED) if made == killed_at else None):
            act()
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in (0, KILLED):
        raise SystemExit(f"a child ended with {code}")
    return code == 0


def _publish_all_but_the_end(repository: Path, withdrawn: Sequence[str]) -> None:
    with mock.patch.object(publishing.Journal, "remove", side_effect=partial(os._exit, KILLED)):
        publish_new_entries(repository, withdrawn)


def main(folder: Path, what: str, withdrawn: Sequence[str]) -> int:
    """Returns the number of the first child that was not killed."""
    for number in itertools.count(1):
        repository = repository_with_old_entries(folder / str(number))
        act = partial(publish_new_entries, repository, withdrawn)
        if what == "repair":
            in_child(partial(_publish_all_but_the_end, repository, withdrawn))
            act = partial(begin_build, repository)
        if in_child(act, number):
            return number
    raise AssertionError


if __name__ == "__main__":
    with nullcontext() if sys.argv[3] == "exchange" else without_exchange():
        print(main(Path(sys.argv[1]), sys.argv[2], sys.argv[4:]))
