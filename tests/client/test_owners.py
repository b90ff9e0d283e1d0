"""Who owns a thing, and whether that process has ended: judged only where a process id means the same process."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.namespaces import own_pid_namespace
from voxtile.machine import owners
from voxtile.machine.owners import Owner, has_ended, parse_owner, this_process

SAY = "from voxtile.machine.owners import this_process; print(this_process())"
JUDGE = "import sys; from voxtile.machine.owners import *; print(has_ended(parse_owner(sys.argv[1])))"


def said(*command: str) -> str:
    return subprocess.run([*command], capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def ended_process() -> Owner:
    owner = parse_owner(said(sys.executable, "-c", SAY))
    assert owner is not None
    return owner


def test_a_living_process_is_known_to_itself_and_to_others() -> None:
    here = this_process()
    assert parse_owner(str(here)) == here == this_process()
    assert parse_owner(f"{here}-7f3a") == here
    assert here.pid == os.getpid()
    assert not has_ended(here)
    assert said(sys.executable, "-c", JUDGE, str(here)) == "False"


def test_a_process_that_ended_is_known_by_its_id_and_by_its_start() -> None:
    gone = ended_process()
    assert has_ended(gone)
    assert has_ended(replace(gone, pid=os.getpid()))  # its id has been given to us
    assert has_ended(replace(gone, pid=9_999_999_999))  # beyond any id


def test_who_lives_elsewhere_is_never_judged() -> None:
    gone = ended_process()
    assert not has_ended(replace(gone, place="0" * 16))
    assert not has_ended(replace(gone, uid=gone.uid + 1))


@pytest.mark.parametrize(
    "name",
    ["", "1-2-0", "1-2-0-xyz", "²-1-0-0123456789abcdef", "0-1-0-0123456789abcdef", "-5-1-0-0123456789abcdef",
     "999999999-1-0", "1-2-3-0123456789abcdef0", "1-2-3-0123456789ABCDEF", "99999999999-1-0-0123456789abcdef",
     "\udcff-1-0-0123456789abcdef", "1-2-3-0123456789abcdef\n-x"],
)  # fmt: skip
def test_what_does_not_name_a_process_names_none(name: str) -> None:
    assert parse_owner(name) is None


def test_a_fork_is_another_process() -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, str(this_process()).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        owner = parse_owner(pipe.read())
    assert owner is not None
    assert owner.pid == child
    assert owner.place == this_process().place
    assert has_ended(owner)


def test_a_process_in_another_pid_namespace_judges_nobody_here() -> None:
    """Neither with its own /proc, nor with ours, in which it would find strangers under the ids that it looks for."""
    way = own_pid_namespace()
    if way is None:  # then at least the place decides
        assert not has_ended(replace(ended_process(), place=this_process().place[::-1]))
        return
    gone, here = ended_process(), this_process()
    for more in ((), ("--mount-proc",)):
        place = parse_owner(said(*way, *more, sys.executable, "-c", SAY))
        assert place is not None
        assert place.place != here.place
        assert not has_ended(place)
        for owner in (gone, here):
            assert said(*way, *more, sys.executable, "-c", JUDGE, str(owner)) == "False"


def test_every_namespace_in_which_ids_and_starts_count_for_themselves_is_another_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Starts are told by the clock of the time namespace: another clock would make the living look dead."""
    for name in ("sys", "self"):
        (tmp_path / name).mkdir()
    (tmp_path / "sys/kernel/random").mkdir(parents=True)
    (tmp_path / "self/ns").mkdir()
    (tmp_path / "self/status").write_text(f"NSpid:\t{os.getpid()}\n")
    monkeypatch.setattr(owners, "PROC", tmp_path)

    def place(boot: str, pid: str, time: str) -> str:
        (tmp_path / "sys/kernel/random/boot_id").write_text(boot)
        for kind, target in (("pid", pid), ("time", time)):
            link = tmp_path / "self/ns" / kind
            link.unlink(missing_ok=True)
            link.symlink_to(target)
        return owners._place()

    places = [place("a", "1", "1"), place("b", "1", "1"), place("a", "2", "1"), place("a", "1", "2")]
    assert len(set(places)) == 4
    assert place("a", "1", "1") == places[0]


def test_who_does_not_know_its_own_start_is_judged_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owners, "_start", lambda _: None)
    here = this_process()
    monkeypatch.undo()
    assert not has_ended(here)


@pytest.mark.parametrize("missing", ["sys", "self", "all"])
def test_where_proc_is_not_readable_nobody_is_judged(
    missing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gone = ended_process()
    for name in {"sys", "self"} - {missing} if missing != "all" else ():
        (tmp_path / name).symlink_to(f"/proc/{name}")
    monkeypatch.setattr(owners, "PROC", tmp_path)
    here = this_process()
    assert not has_ended(here)
    assert not has_ended(gone)
    assert here != this_process()  # two that know nothing of their place do not take each other for neighbours
