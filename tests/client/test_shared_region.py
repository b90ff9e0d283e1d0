"""One region of shared memory: both sides see the same bytes, no name stays, and what the dead have left is removed."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from tests.support.fake_triton import FakeTriton, silent
from tests.support.scripted_memory import IN_USE, NO_ANSWER, REFUSED, ScriptedMemory, no_new_names
from voxtile import ConnectionConfig
from voxtile.machine.owners import Owner, this_process
from voxtile.triton import shared_memory
from voxtile.triton.connection import connect
from voxtile.triton.shared_memory import Region, ServerMemory, forget_dead_clients

FLOATS, BYTES = np.dtype(np.float32), np.dtype(np.uint8)


@pytest.fixture
def memory() -> Iterator[ScriptedMemory]:
    with no_new_names():
        yield ScriptedMemory()


# A region's life ---------------------------------------------------------------------------------------------


def test_both_sides_see_the_same_bytes(memory: ScriptedMemory) -> None:
    region = Region(memory, 100)
    theirs = memory.mapped[region.name]
    region.array(FLOATS, (2, 3), 8)[...] = [[0, 1, 2], [3, 4, 5]]
    assert theirs[8:32] == np.arange(6, dtype=np.float32).tobytes()
    theirs[0:2] = b"ab"
    assert region.array(BYTES, (2,)).tobytes() == b"ab"
    assert region.array(BYTES, (100,)).shape == (100,)
    with pytest.raises(ValueError, match="smaller"):
        region.array(BYTES, (101,))
    assert region.close()


def test_a_region_is_private_to_its_user_and_takes_its_memory_at_once(memory: ScriptedMemory) -> None:
    """Memory that is taken only when it is written to may then be lacking, which ends the process."""
    region = Region(memory, 100_000)
    file = memory.files[region.name]
    assert stat.S_IMODE(file.st_mode) == 0o600
    assert file.st_size == 100_000
    assert file.st_blocks * 512 >= 100_000
    assert region.close()


def test_a_name_says_whose_it_is_and_stands_only_while_the_server_maps_it(memory: ScriptedMemory) -> None:
    names = []
    for _ in range(2):
        region = Region(memory, 10)
        names.append(region.name)
        assert region.name.startswith(f"voxtile-{this_process()}-")
        assert not os.path.lexists(f"/dev/shm/{region.name}")
        assert region.close()
    assert len(set(names)) == 2


def descriptors() -> list[str]:
    """What this process has open of shared memory, and of the folder through which a region is named."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the folder that is being read
            found.append(os.readlink(descriptor))
    return sorted(name for name in found if name.startswith(("/dev/shm", "/proc")))


def test_no_descriptor_stays_open_but_that_of_the_memory(memory: ScriptedMemory) -> None:
    before = descriptors()
    region = Region(memory, 10)
    assert len(descriptors()) - len(before) <= 2  # each side's mapping may hold one
    memory.mapped.pop(region.name).close()
    assert region.close()
    assert descriptors() == before


def test_closing_unmaps_it_on_both_sides(memory: ScriptedMemory) -> None:
    region = Region(memory, 10)
    assert region.left is False
    assert region.close()
    assert region.left is True
    assert not memory.mapped
    with pytest.raises(ValueError, match="closed"):
        region.array(BYTES, (1,))


def test_closing_leaves_views_that_still_exist_readable(memory: ScriptedMemory) -> None:
    region = Region(memory, 10)
    view = region.array(BYTES, (10,))
    view[:] = 7
    assert region.close()
    assert (view == 7).all()


def test_what_the_server_still_uses_stays_mapped_here_too(memory: ScriptedMemory) -> None:
    region = Region(memory, 10)
    memory.refusals["unmap"] = [IN_USE]
    assert not region.close()
    assert not region.left
    region.array(BYTES, (10,))[:] = 7
    assert region.close()


@pytest.mark.parametrize("code", ["DEADLINE_EXCEEDED", "CANCELLED"])
def test_a_server_that_does_not_answer_keeps_it_and_this_process_does_not(memory: ScriptedMemory, code: str) -> None:
    region = Region(memory, 10)
    memory.refusals["unmap"] = [InferenceServerException("late", f"StatusCode.{code}")]
    assert not region.close()
    assert region.left
    assert region.name in memory.mapped
    assert region.close()  # asked once more, it answers
    assert not memory.mapped


@pytest.mark.parametrize(
    "error",
    [
        InferenceServerException("gone", "StatusCode.UNAVAILABLE"),
        InferenceServerException("unknown region", "StatusCode.NOT_FOUND"),
        InferenceServerException("no words", None),
        ValueError("Cannot invoke RPC on closed channel!"),
    ],
)
def test_a_server_that_has_forgotten_it_or_is_gone_need_not_be_asked_again(
    memory: ScriptedMemory, error: Exception
) -> None:
    region = Region(memory, 10)
    memory.refusals["unmap"] = [error]
    assert region.close()
    assert region.left


@pytest.mark.parametrize("error", [REFUSED, NO_ANSWER, KeyboardInterrupt()])
def test_a_region_that_cannot_be_mapped_leaves_nothing_here(
    memory: ScriptedMemory, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, held = descriptors(), set(shared_memory._held)
    memory.refusals["map"] = [error]
    with pytest.raises(type(error)):
        Region(memory, 10)
    assert descriptors() == before
    assert shared_memory._held == held


# Room --------------------------------------------------------------------------------------------------------


def machine_with(monkeypatch: pytest.MonkeyPatch, blocks: int, block_bytes: int, free: int) -> None:
    """Lets /dev/shm be of `blocks` blocks, of which `free` are free."""
    fields = [block_bytes, block_bytes, blocks, free + 3, free, 0, 0, 0, 0, 255]
    monkeypatch.setattr(os, "fstatvfs", lambda _: os.statvfs_result(fields))


def test_as_much_memory_as_is_taken_stays_free_for_the_server(
    memory: ScriptedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine_with(monkeypatch, blocks=1000, block_bytes=4, free=50)
    assert Region(memory, 100).close()
    with pytest.raises(OSError, match="less than twice 101 bytes are free: '/dev/shm'") as caught:
        Region(memory, 101)
    assert caught.value.errno == errno.ENOSPC
    assert memory.count("map") == 1


def test_memory_without_a_limit_tells_no_size(memory: ScriptedMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    machine_with(monkeypatch, blocks=0, block_bytes=4096, free=0)
    assert Region(memory, 100).close()


def test_a_machine_whose_memory_is_full_says_so_before_the_server_is_asked(
    memory: ScriptedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine_with(monkeypatch, blocks=1, block_bytes=4096, free=0)
    with pytest.raises(OSError, match="less than twice 1 bytes"):
        Region(memory, 1)
    assert not memory.asked


# What is said to a server ------------------------------------------------------------------------------------


@contextlib.contextmanager
def served(fake: FakeTriton) -> Iterator[ServerMemory]:
    client = connect(fake.url, ConnectionConfig())
    try:
        yield ServerMemory(client, lambda: {"token": "abc"})
    finally:
        client.close()


def test_each_call_carries_the_headers_and_has_its_own_time() -> None:
    most = {
        "SystemSharedMemoryRegister": 10.0,
        "SystemSharedMemoryStatus": 5.0,
        "ServerLive": 5.0,
        "SystemSharedMemoryUnregister": 2.0,
    }
    with FakeTriton() as fake, served(fake) as memory:
        region = Region(memory, 10)
        assert memory.names() == [region.name]
        assert memory.server_is_live()
        assert region.close()
        assert memory.names() == []
        assert {call.method for call in fake.calls} == set(most)
        for call in fake.calls:
            assert call.headers["token"] == "abc"
            assert 0 < (call.seconds_left or 0) <= most[call.method] + 0.5, call.method


def test_a_server_is_told_the_name_the_file_and_the_size() -> None:
    with FakeTriton() as fake, served(fake) as memory:
        region = Region(memory, 12345)
        [told] = [call.request for call in fake.calls]
        assert (told.name, told.key, told.byte_size, told.offset) == (region.name, f"/{region.name}", 12345, 0)
        assert region.close()


def test_a_server_that_is_gone_silent_or_dead_is_not_live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "STATUS_TIMEOUT_S", 0.2)
    with FakeTriton() as fake, served(fake) as memory:
        fake.rules["ServerLive"] = silent(fake)
        assert memory.server_is_live() is False
        fake.die()
        assert memory.server_is_live() is False
        fake.rules.clear()
        fake.start()


# What others have left ---------------------------------------------------------------------------------------

GONE = replace(this_process(), pid=9_999_999_999)
"""A process of this user and place, with an id beyond any."""

ELSEWHERE = replace(GONE, place="0" * 16)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(shared_memory, "SHM", tmp_path)
    return tmp_path


def of(owner: Owner) -> str:
    return f"voxtile-{owner}-0a"


def test_names_and_regions_of_the_dead_are_removed_and_no_others(folder: Path, memory: ScriptedMemory) -> None:
    held, left = f"{of(this_process())}1", f"{of(this_process())}2"
    others = {of(ELSEWHERE), held, str(GONE), f"voxtile{of(GONE)}", "voxtile-", "psm-1"}
    dead = {of(GONE), left}
    for name in dead | others:
        (folder / name).touch()
        memory.mapped[name] = None  # type: ignore[assignment]
    shared_memory._held.add(held)
    forget_dead_clients(memory)
    shared_memory._held.discard(held)
    assert {path.name for path in folder.iterdir()} == others
    assert set(memory.mapped) == others


def test_regions_that_are_open_are_not_left_and_those_that_were_left_are(memory: ScriptedMemory) -> None:
    open_one, left = Region(memory, 10), Region(memory, 10)
    left.leave()
    forget_dead_clients(memory)
    assert set(memory.mapped) == {open_one.name}
    assert open_one.close()


def test_one_that_cannot_be_removed_hides_no_other(folder: Path, memory: ScriptedMemory) -> None:
    names = [f"{of(GONE)}{number}" for number in range(4)]
    for name in names[:2]:
        (folder / name).mkdir()
    for name in names[2:]:
        (folder / name).touch()
    for name in names:
        memory.mapped[name] = None  # type: ignore[assignment]
    memory.refusals["unmap"] = [IN_USE, None, IN_USE]
    forget_dead_clients(memory)
    assert {path.name for path in folder.iterdir()} == set(names[:2])
    assert list(memory.mapped) == [names[0], names[2]]


def test_where_the_folder_cannot_be_read_the_server_is_asked_all_the_same(
    memory: ScriptedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object) -> None:
        raise PermissionError(13, "denied")

    memory.mapped[of(GONE)] = None  # type: ignore[assignment]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "glob", denied)
        forget_dead_clients(memory)
    assert not memory.mapped


def test_where_the_server_does_not_answer_the_names_are_removed_all_the_same(
    folder: Path, memory: ScriptedMemory
) -> None:
    (folder / of(GONE)).touch()
    memory.refusals["names"] = [REFUSED]
    forget_dead_clients(memory)
    assert not list(folder.iterdir())


def test_a_name_that_cannot_be_taken_away_costs_no_region(
    memory: ScriptedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later client takes it away."""
    named: list[Path] = []

    def refuses(path: Path) -> None:
        named.append(path)
        raise OSError(errno.EROFS, "read-only")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", refuses)
        region = Region(memory, 100)
    for path in named:
        path.unlink()
    assert named
    assert region.name in memory.mapped
    region.close()
