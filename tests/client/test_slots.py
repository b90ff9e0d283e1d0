"""The pool of shared memory: which region a request gets, and what becomes of one that is no longer wanted."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterator

import pytest

from tests.support.scripted_memory import IN_USE, NO_ANSWER, REFUSED, Clock, ScriptedMemory, no_new_names
from voxtile import InputError
from voxtile.triton import shared_memory, slots
from voxtile.triton.shared_memory import Region
from voxtile.triton.slots import SlotPool

HERE = "127.0.0.1:8001"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(slots, "time", clock)
    return clock


@pytest.fixture
def memory(clock: Clock) -> ScriptedMemory:
    return ScriptedMemory(clock)


@pytest.fixture
def pool(memory: ScriptedMemory) -> Iterator[SlotPool]:
    pool = SlotPool(memory, HERE, None)
    with no_new_names():
        yield pool
        memory.refusals.clear()
        pool.close()


def taken(pool: SlotPool, *sizes: int) -> list[Region]:
    """Regions of these sizes, all lent at once."""
    found = [pool.take(size) for size in sizes]
    assert None not in found
    return [one for one in found if one is not None]


def idle(pool: SlotPool, *sizes: int) -> list[Region]:
    """Regions of these sizes that wait for a request, given back in this order."""
    regions = taken(pool, *sizes)
    for region in regions:
        pool.give_back(region)
    return regions


# Which region ------------------------------------------------------------------------------------------------


def test_a_region_is_used_again_and_mapped_once(pool: SlotPool, memory: ScriptedMemory) -> None:
    [region] = idle(pool, 100)
    for size in (100, 1, 99):
        assert pool.take(size) is region
        pool.give_back(region)
    assert memory.count("map") == 1
    assert memory.count("unmap") == 0


def test_a_region_that_is_lent_is_lent_to_nobody_else(pool: SlotPool) -> None:
    first, second = taken(pool, 100, 100)
    assert first is not second
    pool.give_back(second)
    assert pool.take(100) is second
    assert pool.take(100) not in (first, second)


def test_the_smallest_that_is_large_enough_is_taken(pool: SlotPool) -> None:
    _, large, fitting, _ = idle(pool, 100, 400, 200, 300)
    assert pool.take(101) is fitting
    assert pool.take(301) is large


def test_where_none_is_large_enough_the_smallest_makes_room(pool: SlotPool, memory: ScriptedMemory) -> None:
    large, smallest, middle = idle(pool, 300, 100, 200)
    [new] = taken(pool, 301)
    assert new.size == 301
    assert smallest.name not in memory.mapped
    assert {large.name, middle.name, new.name} == set(memory.mapped)


# What is not wanted ------------------------------------------------------------------------------------------


def test_a_dropped_region_is_never_used_again_and_closed_later(pool: SlotPool, memory: ScriptedMemory) -> None:
    """Its server may be slow to answer, and the caller is in a hurry."""
    [region] = taken(pool, 100)
    pool.drop(region)
    assert memory.count("unmap") == 0
    assert pool.take(100) is not region
    assert region.name not in memory.mapped


def test_tidying_keeps_the_smallest(pool: SlotPool, memory: ScriptedMemory) -> None:
    _, small, middle = idle(pool, 300, 100, 200)
    pool.tidy(3)
    assert memory.count("unmap") == 0
    pool.tidy(2)
    assert set(memory.mapped) == {small.name, middle.name}
    pool.tidy(1)
    assert set(memory.mapped) == {small.name}
    assert pool.take(100) is small
    assert memory.count("unmap") == 2


def test_tidying_closes_what_was_dropped_and_nothing_that_is_lent(pool: SlotPool, memory: ScriptedMemory) -> None:
    dropped, lent = taken(pool, 100, 200)
    pool.drop(dropped)
    pool.tidy(9)
    assert set(memory.mapped) == {lent.name}


def test_after_a_servers_restart_nothing_idle_is_left(pool: SlotPool, memory: ScriptedMemory) -> None:
    idle(pool, 100, 200)
    pool.forget()
    assert not memory.mapped


def test_memory_that_the_server_does_not_write_to_is_given_up(
    pool: SlotPool, memory: ScriptedMemory, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = taken(pool, 100, 100)
    pool.distrust(first)
    pool.distrust(second)
    assert pool.take(100) is None
    assert memory.count("map") == 2
    [told] = [record.getMessage() for record in caplog.records]
    assert told == (
        f"no memory is shared with {HERE} (the server does not write to this machine's memory); tiles go through gRPC"
    )
    pool.tidy(9)
    assert not memory.mapped


def test_memory_that_was_insisted_on_is_tried_again(memory: ScriptedMemory, caplog: pytest.LogCaptureFixture) -> None:
    pool = SlotPool(memory, HERE, True)
    [region] = taken(pool, 100)
    pool.distrust(region)
    assert pool.take(100) not in (None, region)
    assert not caplog.records
    pool.close()


# Where memory is shared --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("localhost:8001", True),
        ("127.0.0.1:8001", True),
        ("127.8.9.10:8001", True),
        ("[::1]:8001", True),
        ("10.0.0.1:8001", False),
        ("1127.0.0.1:8001", False),
        ("localhost.example:8001", False),
        ("example:8001", False),
        ("[::2]:8001", False),
    ],
)
def test_memory_is_shared_with_this_machine_unless_it_is_said_otherwise(
    url: str, here: bool, memory: ScriptedMemory
) -> None:
    for wanted, shared in ((None, here), (True, True), (False, False)):
        pool = SlotPool(memory, url, wanted)
        region = pool.take(100)
        assert (region is not None) == shared
        if region is not None:
            pool.give_back(region)
        assert pool.can_share() == shared
        pool.close()
    assert not memory.mapped


def test_what_the_dead_have_left_is_looked_for_once(pool: SlotPool, memory: ScriptedMemory) -> None:
    assert memory.count("names") == 0
    taken(pool, 100, 100)
    assert memory.count("names") == 1
    assert memory.asked[0] == ("names", "")


def test_a_machine_without_memory_is_asked_again_after_half_a_minute(
    pool: SlotPool, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[int] = []

    def full(_: int, size: int) -> None:
        asked.append(size)
        raise OSError(28, "all memory is taken")

    with monkeypatch.context() as patch:
        patch.setattr(shared_memory, "_allocate", full)
        assert pool.take(100) is None
        for later in (0.0, 15.0, 14.0):
            clock.now += later
            assert pool.take(100) is None
        assert len(asked) == 1
        clock.now += 1.0
        assert pool.take(100) is None
        assert len(asked) == 2
    [told] = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert "all memory is taken" in told
    clock.now += 30.0
    assert pool.take(100) is not None


def test_while_memory_is_lacking_what_there_is_is_used(pool: SlotPool, monkeypatch: pytest.MonkeyPatch) -> None:
    [region, _] = taken(pool, 100, 100)

    def full(*_: object) -> None:
        raise OSError(28, "full")

    monkeypatch.setattr(shared_memory, "_allocate", full)
    assert pool.take(100) is None
    pool.give_back(region)
    assert pool.take(100) is region


def test_a_server_that_maps_nothing_is_asked_twice_and_never_again(
    pool: SlotPool, memory: ScriptedMemory, caplog: pytest.LogCaptureFixture
) -> None:
    """Twice, because one that was started again at this very moment has forgotten nothing of ours the second time."""
    memory.refusals["map"] = [REFUSED] * 9
    with caplog.at_level(logging.INFO):
        assert pool.take(100) is None
    assert memory.count("map") == 2
    assert pool.take(100) is None
    assert memory.count("map") == 2
    assert not pool.can_share()
    assert f"{HERE} maps no memory of this machine" in caplog.text
    assert "not supported" in caplog.text


def test_a_server_that_maps_at_the_second_try_is_used(pool: SlotPool, memory: ScriptedMemory) -> None:
    memory.refusals["map"] = [REFUSED]
    [region] = taken(pool, 100)
    assert set(memory.mapped) == {region.name}
    assert region.size == 100


def test_a_server_that_is_gone_says_nothing_of_its_memory(pool: SlotPool, memory: ScriptedMemory) -> None:
    memory.refusals["map"], memory.live = [REFUSED], False
    assert pool.take(100) is None
    assert memory.count("map") == 1
    memory.live = True
    assert pool.take(100) is not None


@pytest.mark.parametrize("where", ["server", "machine"])
def test_memory_that_was_insisted_on_and_cannot_be_had_is_an_error(
    where: str, memory: ScriptedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = SlotPool(memory, HERE, True)
    if where == "server":
        memory.refusals["map"] = [REFUSED] * 2
    else:
        monkeypatch.setattr(shared_memory, "SHM", shared_memory.SHM / "nowhere")
    reason = "not supported" if where == "server" else "No such file"
    with pytest.raises(
        InputError, match=rf"--shared-memory was asked for, but {HERE} and .* share memory \(.*{reason}"
    ):
        pool.take(100)
    pool.close()


# The end -----------------------------------------------------------------------------------------------------


def test_closing_unmaps_everything_that_is_not_lent(pool: SlotPool, memory: ScriptedMemory, clock: Clock) -> None:
    idle(pool, 100)
    pool.drop(taken(pool, 200)[0])
    pool.close()
    assert not memory.mapped
    assert not clock.slept


def test_closing_waits_for_what_the_server_still_uses(pool: SlotPool, memory: ScriptedMemory, clock: Clock) -> None:
    idle(pool, 100)
    memory.refusals["unmap"] = [IN_USE] * 4
    pool.close()
    assert not memory.mapped
    assert len(clock.slept) == 4
    assert 0 < sum(clock.slept) < 0.5


def test_closing_does_not_wait_for_ever(pool: SlotPool, memory: ScriptedMemory, clock: Clock) -> None:
    [region] = idle(pool, 100)
    memory.refusals["unmap"] = [IN_USE] * 9999
    begun = clock.now
    pool.close()
    assert clock.now - begun == pytest.approx(5.0, abs=0.1)
    assert region.left
    assert memory.count("unmap") > 100  # it lets go of the memory soon after its work ends
    assert not pool._slots.dropped


def test_a_server_in_use_keeps_its_memory_until_it_has_ended(pool: SlotPool, memory: ScriptedMemory) -> None:
    """While the connection goes on, it is asked again with the next request."""
    idle(pool, 100)
    memory.refusals["unmap"] = [IN_USE]
    pool.tidy(0)
    assert len(memory.mapped) == 1
    pool.tidy(0)
    assert not memory.mapped


def test_a_silent_server_is_asked_for_one_region_and_for_each_once_more_at_the_end(
    pool: SlotPool, memory: ScriptedMemory, clock: Clock
) -> None:
    regions = idle(pool, 100, 200, 300)
    memory.silence_s = shared_memory.UNMAP_TIMEOUT_S
    memory.refusals["unmap"] = [NO_ANSWER]
    pool.tidy(0)
    assert memory.count("unmap") == 1
    assert all(region.left for region in regions)  # they take no memory here
    for _ in range(3):
        pool.tidy(0)
    assert memory.count("unmap") == 1
    assert len(memory.mapped) == 3
    pool.close()
    assert not memory.mapped
    assert memory.count("unmap") == 4


def test_a_server_that_is_only_slow_is_asked_for_all(pool: SlotPool, memory: ScriptedMemory) -> None:
    regions = idle(pool, 100, 200, 300)
    memory.silence_s = shared_memory.UNMAP_TIMEOUT_S / 3
    memory.refusals["unmap"] = [NO_ANSWER, NO_ANSWER]
    pool.tidy(0)
    assert memory.count("unmap") == 3
    assert set(memory.mapped) == {regions[0].name, regions[1].name}


def test_a_pool_that_is_only_forgotten_unmaps_what_it_had_and_what_it_had_lent(memory: ScriptedMemory) -> None:
    pool = SlotPool(memory, HERE, None)
    lent = taken(pool, 100)
    idle(pool, 200)
    pool.drop(taken(pool, 300)[0])
    memory.refusals["unmap"] = [None, IN_USE]
    del pool
    gc.collect()
    assert len(memory.mapped) == 1  # the one in use; a later client takes it back
    assert memory.count("unmap") == 3
    assert lent[0].left


def test_a_closed_pool_says_nothing_more_when_it_is_forgotten(memory: ScriptedMemory) -> None:
    pool = SlotPool(memory, HERE, None)
    taken(pool, 100)
    pool.close()
    del pool
    gc.collect()
    assert memory.count("unmap") == 0


def test_a_fork_leaves_the_memory_to_its_parent(memory: ScriptedMemory) -> None:
    pool = SlotPool(memory, HERE, None)
    [region] = idle(pool, 100)
    finalizer = pool._finalizer
    slots._close_now(pool._slots, os.getpid() + 1)  # as at the end of a fork, whose finalizers run too
    assert set(memory.mapped) == {region.name}
    pool.abandon()
    assert not finalizer.alive
    pool.close()
    assert set(memory.mapped) == {region.name}
    assert not region.left
    region.close()
