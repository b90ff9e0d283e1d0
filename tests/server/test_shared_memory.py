"""Names in /dev/shm for Triton's stubs: what the dead have left goes, what is anybody else's stays."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from voxtile_server.process import shared_memory, supervisor
from voxtile_server.process.shared_memory import locked_prefix, remove_stale


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of /dev/shm, so that no server of another test is met."""
    monkeypatch.setattr(supervisor, "SHARED_MEMORY", tmp_path)
    return tmp_path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_lock_that_is_held_keeps_its_regions_and_one_that_is_not_loses_them(memory: Path) -> None:
    with locked_prefix() as (first, _), locked_prefix() as (second, _):
        assert first != second
        for prefix in (first, second):
            (memory / f"{prefix}region").touch()
        before = names(memory)
        remove_stale()
        assert names(memory) == before
    (memory / "voxtile_1_ab_region").touch()  # nobody says whose it is
    remove_stale()
    assert names(memory) == {"voxtile_1_ab_region"}


HOLD = """
import os, sys
from pathlib import Path
from voxtile_server.process import shared_memory, supervisor
supervisor.SHARED_MEMORY = Path(sys.argv[1])
with shared_memory.locked_prefix() as (prefix, lock):
    (supervisor.SHARED_MEMORY / f"{prefix}region").touch()
    print(prefix, flush=True)
    sys.stdin.read()
    os._exit(0)  # as a kill would end it
"""


@contextlib.contextmanager
def holder(memory: Path, before: tuple[str, ...] = ()) -> Iterator[str]:
    """Another process that holds a lock within the block; its prefix."""
    with subprocess.Popen(
        [*before, sys.executable, "-c", HOLD, str(memory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.communicate(timeout=60)


def test_the_lock_of_a_process_ends_with_it(memory: Path) -> None:
    with holder(memory) as prefix:
        remove_stale()
        assert names(memory) == {f"{prefix}owner", f"{prefix}region"}
    assert names(memory) == {f"{prefix}owner", f"{prefix}region"}
    remove_stale()
    assert not names(memory)


def test_a_server_in_another_pid_namespace_keeps_what_it_uses(memory: Path) -> None:
    """Its process ids are of no process here."""
    from tests.support.namespaces import own_pid_namespace

    with holder(memory, tuple(own_pid_namespace() or ())) as prefix:
        if own_pid_namespace():
            assert prefix.split("_")[1] == "1" or not Path("/proc", prefix.split("_")[1], "exe").exists()
        remove_stale()
        assert names(memory) == {f"{prefix}owner", f"{prefix}region"}


@pytest.mark.parametrize(
    "name",
    ["voxtile_1_ab_owner", "voxtile_²_ab_owner", "voxtile_*_owner", "voxtile__owner", "voxtile_1_[a]_owner",
     "voxtile_\udcff_1_owner"],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["folder", "link", "dangling", "pipe", "socket name"])
def test_what_is_no_lock_of_ours_stays_and_stops_nothing(memory: Path, name: str, kind: str) -> None:
    path, other = memory / name, memory / "voxtile_1_ab_region"
    other.touch()
    match kind:
        case "folder":
            path.mkdir(mode=0)
        case "link":
            path.symlink_to(other)
        case "dangling":
            path.symlink_to("/nowhere")
        case "pipe":
            os.mkfifo(path)
        case _:
            path.with_name("voxtile-1-2-3").touch()
    before = names(memory)
    remove_stale()
    assert names(memory) == before


@pytest.mark.parametrize("name", ["voxtile_*_owner", "voxtile__owner", "voxtile_?_ab_owner", "voxtile_1_[a-c]b_owner"])
def test_a_file_whose_name_fits_others_removes_none_of_them(memory: Path, name: str) -> None:
    (memory / name).touch()
    (memory / "voxtile_1_ab_region").touch()
    remove_stale()
    assert names(memory) == {name, "voxtile_1_ab_region"}


def test_a_lock_of_another_user_stays(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (memory / "voxtile_1_ab_owner").touch()
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        remove_stale()
    assert names(memory) == {"voxtile_1_ab_owner"}
    remove_stale()
    assert not names(memory)


def test_what_cannot_be_removed_stops_nothing(memory: Path) -> None:
    (memory / "voxtile_1_ab_folder").mkdir()
    (memory / "voxtile_1_ab_region").touch()
    supervisor.remove_shared_memory("voxtile_1_ab_")
    assert names(memory) == {"voxtile_1_ab_folder"}


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_without_a_folder_for_shared_memory_there_is_a_prefix_and_no_lock(
    memory: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "file":
        (memory / "gone").touch()
    monkeypatch.setattr(supervisor, "SHARED_MEMORY", memory / "gone")
    remove_stale()
    with locked_prefix() as (prefix, lock):
        assert prefix.startswith(f"voxtile_{os.getpid()}_")
        assert lock is None


def test_a_lock_that_is_taken_away_before_it_is_held_is_made_anew(
    memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, times = shared_memory.fcntl.flock, [2]

    def late(descriptor: int, how: int) -> None:
        times[0] -= 1
        if times[0] >= 0:
            for path in memory.iterdir():
                path.unlink()
        real(descriptor, how)

    monkeypatch.setattr(shared_memory.fcntl, "flock", late)
    with locked_prefix() as (prefix, lock):
        assert lock is not None
        assert names(memory) == {f"{prefix}owner"}


def test_a_start_that_fails_leaves_no_lock(memory: Path) -> None:
    with pytest.raises(RuntimeError), locked_prefix():
        raise RuntimeError
    assert not names(memory)


@pytest.mark.parametrize(("mib", "said"), [(64, ", with 64 MiB of shared memory: .*--shm-size"), (8192, "^$")])
def test_what_is_small_is_said(mib: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_blocks=mib << 8, f_frsize=4096))
    assert re.search(said, shared_memory.too_small())
