"""A publication that dies or fails at any system call leaves whole entries, and the next build repairs it."""

from __future__ import annotations

import errno
import itertools
import os
import stat
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import pytest

from tests.support.cut_off_publishing import (
    INNER,
    KEPT,
    NAMES,
    OBSOLETE,
    begin_build,
    counted,
    fill,
    publish_new_entries,
    repository_with_old_entries,
    without_exchange,
)
from voxtile_build.errors import RepositoryError
from voxtile_build.repository import publishing
from voxtile_build.repository.journal import FILE
from voxtile_build.repository.publishing import LOCK, publish, staging

OLD = {"tiny": "old", "tiny_a": "old", OBSOLETE: "old", KEPT: "old"}
NEW = {**dict.fromkeys(NAMES, "new"), KEPT: "old"}

Seen = dict[str, str]


def seen(repository: Path) -> Seen:
    """What a Triton that starts now finds: every folder is an entry, and all files of an entry must be of one build."""
    found = {}
    for entry in repository.iterdir():
        if entry.is_dir():
            (found[entry.name],) = {file.read_text() for file in entry.rglob("*") if file.is_file()}
            assert (entry / "config.pbtxt").is_file()
            assert (entry / "1" / "model.onnx").is_file()
    return found


def assert_nothing_is_left(repository: Path) -> None:
    assert [path.name for path in repository.parent.iterdir() if path.name.startswith(".")] == []
    assert [path.name for path in repository.iterdir() if not path.is_dir()] == [LOCK]


def cut_off(folder: Path, what: str, exchange: bool, *withdrawn: str) -> list[Path]:
    """The repositories of builds that were killed, each at another system call, and of one that was not."""
    command = [sys.executable, "-m", "tests.support.cut_off_publishing", str(folder), what]
    told = [*command, "exchange" if exchange else "no-exchange", *withdrawn]
    count = int(subprocess.run(told, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return [folder / str(number) / "models" for number in range(1, count + 1)]


@pytest.mark.parametrize("withdrawn", [(), ("tiny",)], ids=["in-place", "withdrawn"])
@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "no-exchange"])
def test_a_build_killed_at_any_point_is_undone_or_complete(
    tmp_path: Path, exchange: bool, withdrawn: tuple[str, ...]
) -> None:
    repositories = cut_off(tmp_path, "publish", exchange, *withdrawn)
    found = []
    for repository in repositories:
        before = seen(repository)
        if exchange:  # no entry that was there is ever missing, unless it was to be taken away first
            assert set(before) >= {"tiny_a", *({"tiny"} - set(withdrawn))}
        if before.get("tiny") == "new":
            assert {before[name] for name in INNER} == {"new"}, "the public entry appears last"
        if withdrawn and "new" in before.values():
            assert before.get("tiny") != "old", "the old public entry goes first"
        begin_build(repository)
        found.append(seen(repository))
        assert_nothing_is_left(repository)
    turn = found.index(NEW)
    assert found == [OLD] * turn + [NEW] * (len(found) - turn), "once complete, it stays complete"
    assert 20 < turn < len(found) - 1


@pytest.mark.parametrize(("exchange", "withdrawn"), [(True, ()), (False, ("tiny",))], ids=["exchange", "no-exchange"])
def test_a_repair_that_is_killed_too_is_repaired_by_the_next(
    tmp_path: Path, exchange: bool, withdrawn: tuple[str, ...]
) -> None:
    repositories = cut_off(tmp_path, "repair", exchange, *withdrawn)
    assert len(repositories) > 10
    for repository in repositories:
        before = seen(repository)
        if before.get("tiny") == "old" and withdrawn:
            assert before == OLD, "the old public entry comes back last"
        begin_build(repository)
        assert seen(repository) == OLD
        assert_nothing_is_left(repository)


@pytest.mark.parametrize(("exchange", "code"), [(True, errno.ENOSPC), (False, errno.EACCES)], ids=["full", "denied"])
def test_a_system_call_that_fails_leaves_old_entries_or_new_ones(tmp_path: Path, exchange: bool, code: int) -> None:
    """Every call in turn, for good: the repair fails as well, and the next build, on a sound system, makes it good."""
    found = []
    for number in itertools.count(1):
        repository = repository_with_old_entries(tmp_path / str(number))
        failed = False

        def fail(made: int, first: int = number) -> None:
            nonlocal failed
            if made >= first:
                failed = True
                raise OSError(code, os.strerror(code), "somewhere")

        with nullcontext() if exchange else without_exchange(), counted(fail):
            try:
                publish_new_entries(repository)
                told = None
            except RepositoryError as error:
                told = error
        if not failed:
            break
        seen(repository)
        if told is not None:
            assert str(repository) in str(told)
            assert os.strerror(code) in str(told)
        begin_build(repository)
        found.append(seen(repository))
        assert found[-1] == (NEW if told is None else OLD), "an error means that nothing changed"
        assert_nothing_is_left(repository)
    assert NEW in found
    assert found.index(NEW) > 20


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "no-exchange"])
def test_a_call_that_fails_once_is_made_good_at_once(tmp_path: Path, exchange: bool) -> None:
    for number in itertools.count(1):
        repository = repository_with_old_entries(tmp_path / str(number))
        made_so_far = 0

        def fail(made: int, at: int = number) -> None:
            nonlocal made_so_far
            made_so_far = made
            if made == at:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        expected = NEW
        with nullcontext() if exchange else without_exchange(), counted(fail):
            try:
                publish_new_entries(repository)
            except RepositoryError:
                expected = OLD
        assert seen(repository) == expected
        assert not (repository.parent / ".models.building" / FILE).exists()
        if made_so_far < number:
            break


def test_ctrl_c_between_two_swaps_leaves_the_old_entries(tmp_path: Path) -> None:
    repository = repository_with_old_entries(tmp_path)
    answers = mock.Mock(
        side_effect=[False, KeyboardInterrupt, False, False]
    )  # in place, cut off, and two for the repair
    with mock.patch.object(publishing, "_exchange", answers), pytest.raises(KeyboardInterrupt):
        publish_new_entries(repository)
    assert seen(repository) == OLD
    assert_nothing_is_left(repository)


def test_what_somebody_else_moved_is_not_overwritten(tmp_path: Path) -> None:
    killed = repository_with_old_entries(tmp_path)
    first_only = mock.patch.object(publishing, "_place", side_effect=[None, KeyboardInterrupt])
    with first_only, mock.patch.object(publishing, "_clear"), pytest.raises(KeyboardInterrupt):
        publish_new_entries(killed)  # leaves its record, and no entry is in its new place
    (killed / "tiny_a").rename(killed.parent / ".models.building" / ".old" / "tiny_a")
    fill(killed / "tiny_a", "from a backup")
    with pytest.raises(
        RepositoryError, match=r"\.models\.building: .*tiny_a was moved by somebody else; bring .*models"
    ):
        begin_build(killed)
    assert seen(killed)["tiny_a"] == "from a backup"
    assert (killed.parent / ".models.building" / ".old" / "tiny_a" / "config.pbtxt").read_text() == "old"


@pytest.mark.parametrize("text", ["", "[]", "{", '{"moves": [{"nome": "a"}]}', '{"moves": [3]}'])
def test_a_record_that_cannot_be_read_deletes_nothing(tmp_path: Path, text: str) -> None:
    work = tmp_path / ".models.building"
    fill(work / ".old" / "tiny", "old")
    (work / FILE).write_text(text)
    with pytest.raises(RepositoryError, match=r"expected the record .* found what cannot be read .*move entries that"):
        begin_build(tmp_path / "models")
    assert (work / ".old" / "tiny" / "config.pbtxt").read_text() == "old"


def test_an_error_of_the_build_itself_keeps_its_own_text(tmp_path: Path) -> None:
    repository = repository_with_old_entries(tmp_path)
    with pytest.raises(OSError, match=r"No space left on device: '/scans/a\.nii\.gz'") as caught, staging(repository):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/scans/a.nii.gz")
    assert not isinstance(caught.value, RepositoryError)
    assert seen(repository) == OLD


def test_a_file_in_place_of_the_repository_is_named(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("mine")
    with pytest.raises(RepositoryError, match=r"models: expected a folder as the repository, found a file"):
        begin_build(tmp_path / "models")
    assert (tmp_path / "models").read_text() == "mine"


def test_a_circle_of_links_is_named(tmp_path: Path) -> None:
    (tmp_path / "models").symlink_to(tmp_path / "models")
    with pytest.raises(RepositoryError, match="the repository cannot be written"):
        begin_build(tmp_path / "models")


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o002])
def test_entries_have_the_permissions_that_the_umask_gives(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        repository = repository_with_old_entries(tmp_path)
        publish_new_entries(repository)
        for path in repository.rglob("*"):
            assert stat.S_IMODE(path.stat().st_mode) == (0o777 if path.is_dir() else 0o666) & ~mask, path
    finally:
        os.umask(before)


def test_a_link_in_place_of_an_entry_is_replaced_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    repository = repository_with_old_entries(tmp_path)
    (repository / "tiny_a").rename(tmp_path / "elsewhere")
    (repository / "tiny_a").symlink_to(tmp_path / "elsewhere")
    (repository / "tiny_new").symlink_to(tmp_path / "nowhere")
    publish_new_entries(repository)
    assert seen(repository) == NEW
    assert (tmp_path / "elsewhere" / "config.pbtxt").read_text() == "old"


def test_an_entry_that_was_not_staged_removes_nothing(tmp_path: Path) -> None:
    repository = repository_with_old_entries(tmp_path)
    with pytest.raises(RepositoryError, match="tiny_a"), staging(repository) as staged:
        publish(staged, repository, ["tiny_a"])
    assert seen(repository) == OLD
