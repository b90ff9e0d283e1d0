"""Folders appear whole, in order, or not at all; one build at a time."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.cut_off_publishing import (
    INNER,
    counted,
    publish_new_entries,
    repository_with_old_entries,
    without_exchange,
)
from voxtile_build.errors import RepositoryError
from voxtile_build.repository import publishing
from voxtile_build.repository.publishing import LOCK, LOCK_SECONDS, publish, staging


def fill(folder: Path, text: str) -> None:
    folder.mkdir()
    (folder / "config.pbtxt").write_text(text)


def build_and_publish(repository: Path, built: list[str], published: list[str]) -> None:
    with staging(repository) as staged:
        for name in built:
            fill(staged / name, "new")
        publish(staged, repository, published)


def build_then_fail(repository: Path) -> None:
    with staging(repository) as staged:
        fill(staged / "a", "new")
        raise ZeroDivisionError


def contents(repository: Path) -> dict[str, str]:
    return {path.parent.name: path.read_text() for path in repository.glob("*/config.pbtxt")}


def test_new_folders_replace_old_ones_and_obsolete_ones_go(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    repository.mkdir()
    for name in ("tiny", "tiny_openvino", "tiny_tensorrt", "other"):
        fill(repository / name, "old")
    with staging(repository) as staged:
        for name in ("tiny_openvino", "tiny_onnxruntime", "tiny"):
            fill(staged / name, "new")
        publish(staged, repository, ["tiny_openvino", "tiny_onnxruntime", "tiny"], ["tiny_tensorrt", "tiny_none"])
    assert contents(repository) == {"tiny": "new", "tiny_openvino": "new", "tiny_onnxruntime": "new", "other": "old"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models"]


def test_without_exchange_two_renames_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Network file systems cannot exchange two folders in one step.
    monkeypatch.setattr(publishing, "_exchange", lambda one, other: False)
    test_new_folders_replace_old_ones_and_obsolete_ones_go(tmp_path)


@pytest.mark.parametrize("exchange", [True, False])
def test_a_swap_that_fails_halfway_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool) -> None:
    if not exchange:
        monkeypatch.setattr(publishing, "_exchange", lambda one, other: False)
    repository = tmp_path / "models"
    repository.mkdir()
    fill(repository / "a", "old")
    with pytest.raises(RepositoryError, match="cannot be written"):
        build_and_publish(repository, ["a", "b"], ["a", "b", "never-built"])
    assert contents(repository) == {"a": "old"}


def test_an_error_while_building_leaves_the_repository_alone(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    repository.mkdir()
    fill(repository / "a", "old")
    with pytest.raises(ZeroDivisionError):
        build_then_fail(repository)
    assert contents(repository) == {"a": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_what_a_killed_build_left_is_cleared(tmp_path: Path) -> None:
    left = tmp_path / ".models.building"
    left.mkdir()
    fill(left / "tiny", "half")
    with staging(tmp_path / "models") as staged:
        assert not list(staged.iterdir())


def test_triton_would_see_no_folder_of_a_build(tmp_path: Path) -> None:
    with staging(tmp_path / "models"):
        assert [path.name for path in (tmp_path / "models").iterdir()] == [LOCK]
        assert (tmp_path / "models" / LOCK).is_file()


def hold(repository: Path, ready: Callable[[], None], done: Callable[[], None]) -> None:
    with staging(repository):
        ready()
        done()


def test_two_builds_at_once_are_locked_out_and_a_killed_one_is_not_forever(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path / "models", ready.set, done.wait))
    other.start()
    try:
        assert ready.wait(60)
        with pytest.raises(RepositoryError, match="another build is at work"), staging(tmp_path / "models"):
            pass
    finally:
        other.kill()
        other.join()
    with staging(tmp_path / "models") as staged:
        assert staged.is_dir()


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(RepositoryError, match="the repository cannot be written"),
        staging(tmp_path / "file" / "models"),
    ):
        pass


def test_a_repository_behind_a_link_is_written_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    os.symlink(tmp_path / "real", tmp_path / "link")
    with staging(tmp_path / "link") as staged:
        fill(staged / "a", "new")
        publish(staged, tmp_path / "link", ["a"])
    assert contents(tmp_path / "real") == {"a": "new"}


# The order of the swaps


def states(repository: Path, act: Callable[[], Any]) -> list[dict[str, str]]:
    """What a Triton would have seen before each system call of `act`, and after the last."""
    found = []
    with counted(lambda _: found.append(contents(repository))):
        act()
    return [*found, contents(repository)]


@pytest.mark.parametrize("withdrawn", [(), ("tiny",)], ids=["in-place", "withdrawn"])
@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "no-exchange"])
def test_the_public_entry_comes_last_and_goes_first(tmp_path: Path, exchange: bool, withdrawn: tuple[str, ...]) -> None:
    """A client that asks a new public entry for scores must never get those of an old engine."""
    repository = repository_with_old_entries(tmp_path)
    with nullcontext() if exchange else without_exchange():
        seen = states(repository, lambda: publish_new_entries(repository, withdrawn))
    assert seen[0]["tiny"] == "old"
    assert seen[-1] == {**dict.fromkeys((*INNER, "tiny"), "new"), "other": "old"}
    for state in seen:
        if state.get("tiny") == "new":
            assert {state.get(name) for name in INNER} == {"new"}
        if withdrawn and "new" in state.values():
            assert state.get("tiny") != "old"
        if exchange:
            assert "tiny_a" in state
            assert withdrawn or "tiny" in state


@pytest.mark.parametrize("withdrawn", [(), ("tiny",)], ids=["in-place", "withdrawn"])
@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "no-exchange"])
def test_undoing_goes_the_way_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool, withdrawn: tuple[str, ...]
) -> None:
    """The last step of all fails, when everything is in its new place."""
    repository = repository_with_old_entries(tmp_path)
    right, told = publishing.Journal.remove, []

    def fail_once(journal: publishing.Journal) -> None:
        told.append(contents(repository))
        if len(told) == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        right(journal)

    def act() -> None:
        with pytest.raises(RepositoryError, match="cannot be written"):
            publish_new_entries(repository, withdrawn)

    before = contents(repository)
    monkeypatch.setattr(publishing.Journal, "remove", fail_once)
    with nullcontext() if exchange else without_exchange():
        seen = states(repository, act)
    assert told == [{**dict.fromkeys((*INNER, "tiny"), "new"), "other": "old"}, before]
    for state in seen:
        if state.get("tiny") == "new":
            assert {state.get(name) for name in INNER} == {"new"}
        if withdrawn and state.get("tiny") == "old":
            assert state == before
    assert seen[-1] == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models", "new"]


def test_what_is_in_place_already_is_not_moved_again(tmp_path: Path) -> None:
    """A repair that was cut off is repeated: it finds some entries where they belong."""
    repository = repository_with_old_entries(tmp_path)
    made: list[Path] = []
    with staging(repository) as staged:
        publishing.Journal(staged, repository, ()).write()
        inode = os.lstat(repository / "tiny").st_ino
        move = publishing.Move("tiny", inode, None, withdrawn=True)
        publishing._carry_out(publishing.Journal(staged, repository, (move,)), (move,), {move: inode})
        made = [path for path in staged.rglob("*") if path.name == "tiny"]
    assert made == []
    assert contents(repository)["tiny"] == "old"


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "no-exchange"])
def test_a_strangers_entry_is_neither_replaced_nor_parked(tmp_path: Path, exchange: bool) -> None:
    """Between staging and publishing, somebody else puts an entry there whose inode the record does not know."""
    repository = repository_with_old_entries(tmp_path)
    with staging(repository) as staged:
        move = publishing.Move("tiny", 1, 2)
        with nullcontext() if exchange else without_exchange(), pytest.raises(RepositoryError, match="tiny was moved"):
            publishing._place(publishing.Journal(staged, repository, (move,)), move, 2)
    assert contents(repository)["tiny"] == "old"


# Exchanging two folders in one step


def two(folder: Path) -> tuple[Path, Path]:
    for name in ("one", "other"):
        fill(folder / name, name)
    return folder / "one", folder / "other"


def test_two_folders_change_places_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert publishing._exchange(Path("one"), Path("other"))  # a name is looked up in the folder that one is in
    assert contents(tmp_path) == {"one": "other", "other": "one"}


def test_an_exchange_that_fails_says_why_and_of_what(tmp_path: Path) -> None:
    one, _ = two(tmp_path)
    with pytest.raises(FileNotFoundError) as caught:
        publishing._exchange(one, tmp_path / "nothing")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, str(tmp_path / "nothing"))
    assert caught.value.strerror == os.strerror(errno.ENOENT)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM, None], ids=str)
def test_a_system_that_cannot_exchange_is_told_from_one_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int | None
) -> None:
    def refused(*_: Any) -> int:
        ctypes.set_errno(code or 0)
        return -1

    library = SimpleNamespace() if code is None else SimpleNamespace(renameat2=refused)
    monkeypatch.setattr(publishing.ctypes, "CDLL", lambda *_, **__: library)
    assert publishing._exchange(*two(tmp_path)) is False
    assert contents(tmp_path) == {"one": "one", "other": "other"}


# The folder, the lock, the errors


def test_the_folder_of_a_build_lies_beside_the_repository_and_is_empty(tmp_path: Path) -> None:
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real" / "deep")
    with staging(tmp_path / "link" / "models") as staged:
        assert staged == tmp_path / "real" / "deep" / ".models.building"
        assert list(staged.iterdir()) == []
        assert [path.name for path in (tmp_path / "real" / "deep" / "models").iterdir()] == [LOCK]
    assert not staged.exists()


def test_what_cannot_be_removed_at_the_end_harms_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stuck(*_: Any, **__: Any) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    with staging(tmp_path / "models") as staged:
        fill(staged / "a", "new")
        publish(staged, tmp_path / "models", ["a"])
        monkeypatch.setattr(os, "rmdir", stuck)
    assert contents(tmp_path / "models") == {"a": "new"}


@contextmanager
def held(repository: Path) -> Iterator[Callable[[], None]]:
    """Another build holds the lock; what is yielded gives it back."""
    repository.mkdir(exist_ok=True)
    handle = os.open(repository / LOCK, os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield lambda: fcntl.flock(handle, fcntl.LOCK_UN)
    finally:
        os.close(handle)


class Clock:
    """Time that passes only in sleep."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at_sleep: Callable[[float], None] = lambda _: None) -> None:
        self.begun = self.now = 5000.0
        self.at_sleep = at_sleep
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        assert 0 < seconds <= LOCK_SECONDS / 4, "the lock is asked for often"
        self.now += seconds
        assert self.waited < 2 * LOCK_SECONDS, "it waits for ever"
        self.at_sleep(self.waited)

    @property
    def waited(self) -> float:
        return self.now - self.begun


def test_a_lock_that_is_given_back_while_waiting_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may need a moment to clear away a build that was killed."""
    with held(tmp_path / "models") as release:
        Clock(monkeypatch, lambda waited: release() if waited > 0.8 * LOCK_SECONDS else None)
        with staging(tmp_path / "models") as staged:
            assert staged.is_dir()


def test_a_lock_that_is_kept_is_waited_for_only_so_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    fill_repository = tmp_path / ".models.building"
    with held(tmp_path / "models"):
        fill_repository.mkdir()  # of the build that is at work
        with pytest.raises(RepositoryError, match="another build is at work"), staging(tmp_path / "models"):
            pass
        assert fill_repository.is_dir()
    assert LOCK_SECONDS < clock.waited < LOCK_SECONDS + 0.5
    assert LOCK_SECONDS >= 1


def test_the_lock_is_held_until_the_folder_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right, locked = publishing._clear, []

    def clear(repository: Path, work: Path) -> None:
        handle = os.open(repository / LOCK, os.O_RDWR)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            locked.append(True)
        finally:
            os.close(handle)
        right(repository, work)

    monkeypatch.setattr(publishing, "_clear", clear)
    with staging(tmp_path / "models"):
        pass
    assert locked == [True, True]
    with staging(tmp_path / "models"):  # and given back
        pass


def rename_refused(monkeypatch: pytest.MonkeyPatch, code: int, *filename: Any) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(code, os.strerror(code), *filename)

    monkeypatch.setattr(os, "rename", refuse)


def test_a_mount_point_is_refused_before_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename_refused(monkeypatch, errno.EXDEV)
    with pytest.raises(RepositoryError, match=r"models: .* on one file system.*found a mount point"):
        build_then_fail(tmp_path / "models")


def test_another_error_of_that_test_is_told_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename_refused(monkeypatch, errno.EROFS, "somewhere")
    with pytest.raises(RepositoryError, match=r"models: .* written: Read-only file system \(somewhere\); give") as told:
        build_then_fail(tmp_path / "models")
    assert isinstance(told.value.__cause__, OSError)


@pytest.mark.parametrize("named", [True, False])
def test_the_repository_is_named_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool) -> None:
    rename_refused(monkeypatch, errno.EROFS, *([str(tmp_path / "models")] if named else []))
    with pytest.raises(RepositoryError, match="written: Read-only file system; give") as told:
        build_then_fail(tmp_path / "models")
    assert str(told.value).count(str(tmp_path / "models")) == 1


def test_an_error_while_publishing_names_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with staging(tmp_path / "models") as staged:
        fill(staged / "a", "new")
        rename_refused(monkeypatch, errno.EROFS)
        with pytest.raises(RepositoryError) as told:
            publish(staged, tmp_path / "models", ["a"])
        monkeypatch.undo()
    assert str(told.value).startswith(f"{tmp_path / 'models'}: the repository cannot be written")


def test_an_error_without_a_system_text_keeps_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("out of handles")

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(RepositoryError, match="written: out of handles; give"):
        build_then_fail(tmp_path / "models")
