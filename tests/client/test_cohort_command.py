"""`voxtile batch --manifest` as a process: killed, stopped by signals, and with options that do not go together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from subprocess import Popen

import pytest

from tests.support.commands import run
from tests.support.in_memory_commands import ROOT, command, finish, save_scan, start
from tests.support.namespaces import own_mounts

COUNT = 6


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    for number in range(COUNT):
        save_scan(tmp_path / "scans" / f"n{number}.nii.gz", number)
    assert run("manifest", tmp_path / "scans", "-o", tmp_path / "cases.csv").exit_code == 0
    return tmp_path / "cases.csv"


def written(place: Path) -> dict[str, int]:
    """When each mask was written."""
    return {path.name.removesuffix(".nii.gz"): path.stat().st_mtime_ns for path in place.glob("*.nii.gz")}


def lines(place: Path) -> list[str]:
    files = sorted((place / ".voxtile-batch" / "shards").glob("*.jsonl"))
    return [json.loads(line)["case"] for file in files for line in file.read_text().splitlines()]


def begin(cases: Path, place: Path, masks: int, *arguments: str) -> Popen:
    """A run that has written so many masks."""
    running = start("batch", "--manifest", cases, "--out", place, *arguments, seconds=0.05)
    while len(written(place)) < masks:
        assert running.poll() is None, running.communicate()
        time.sleep(0.01)
    return running


def test_a_run_that_is_killed_again_and_again_does_nothing_twice(cases: Path) -> None:
    place = cases.with_name("masks")
    before: dict[str, int] = {}
    for masks in (1, 3, 5):
        running = begin(cases, place, masks)
        running.kill()
        finish(running)
        now = written(place)
        assert {name: now[name] for name in before} == before
        before = now
    code, told, said = finish(start("batch", "--manifest", cases, "--out", place))
    assert (code, said) == (0, "")
    assert f"{COUNT - len(before)} segmented, {len(before)} found finished, 0 failed" in told
    assert sorted(lines(place)) == sorted(written(place)), "one line for each"
    assert len(written(place)) == COUNT
    done = run("collect", place)
    assert (done.exit_code, done.stderr) == (0, "")
    assert f"{COUNT} done, 0 failed, 0 not tried" in done.stdout


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_a_schedulers_signal_writes_what_is_done(cases: Path, number: signal.Signals, code: int) -> None:
    place = cases.with_name("masks")
    running = begin(cases, place, 2)
    running.send_signal(number)
    ended, _, said = finish(running)
    assert ended == code
    assert said.count("\n") == 1
    assert sorted(lines(place)) == sorted(written(place))
    assert not list(place.rglob("*.part"))
    assert run("collect", place).exit_code == 75
    assert finish(start("batch", "--manifest", cases, "--out", place))[0] == 0
    assert run("collect", place).exit_code == 0


def test_the_shard_is_read_from_the_engine_and_told(cases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = cases.with_name("masks")
    monkeypatch.setenv("VOXTILE_SHARDS", "2")
    for index in range(2):
        monkeypatch.setenv("JOB_COMPLETION_INDEX", str(index))
        code, told, _ = finish(start("batch", "--manifest", cases, "--out", place))
        assert code == 0
        assert f"shard {index}/2 (JOB_COMPLETION_INDEX" in told
    assert sorted(lines(place)) == [f"n{number}" for number in range(COUNT)]


def test_a_folder_is_never_split(cases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    assert finish(start("batch", cases.with_name("scans"), cases.with_name("masks")))[0] == 0
    assert len(written(cases.with_name("masks"))) == COUNT


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "IN_DIR and OUT_DIR"),
        (("in",), "IN_DIR and OUT_DIR"),
        (("in", "out", "--manifest", "c.csv"), "found both"),
        (("in", "--manifest", "c.csv", "--out", "o"), "found both"),
        (("--manifest", "c.csv"), "--out"),
        (("in", "out", "--shard", "0/2"), "--shard: expected --manifest"),
        (("in", "out", "--out", "o"), "--out: expected --manifest"),
        (("in", "out", "--retry-failed"), "--retry-failed: expected --manifest"),
        (("in", "out", "--overwrite"), "--overwrite: expected --manifest"),
        (("--manifest", "c.csv", "--out", "o", "--index"), "--index"),
        (("--manifest", "c.csv", "--out", "o", "--shard", "2/2"), "0/2 to 1/2"),
        (("--manifest", "c.csv", "--out", "o", "--shard", "half"), "'half'"),
    ],
)
def test_options_that_do_not_go_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("batch", *arguments, "--model", "any")
    assert (done.exit_code, done.stdout) == (2, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_bad_manifest_leaves_nothing_behind(cases: Path) -> None:
    cases.write_text("case,image\nn0,scans/n0.nii.gz\nn0,scans/n1.nii.gz\n")
    code, _, said = finish(start("batch", "--manifest", cases, "--out", cases.with_name("masks")))
    assert code == 2
    assert said == f"voxtile: {cases}: row 3: expected each case once, found 'n0' in row 2 too; rename one\n"
    assert not cases.with_name("masks").exists()


@pytest.mark.parametrize("name", ["nowhere", "scans", "cases.csv"])
def test_a_place_where_no_shard_has_worked(cases: Path, name: str) -> None:
    done = run("collect", cases.with_name(name))
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"voxtile: {cases.with_name(name)}: expected ")
    assert done.stderr.count("\n") == 1


FULL = """
mount -t tmpfs -o size=44k tmpfs "$0" || exit 9
"$@" --out "$0/masks"
echo "code $?"
mount -o remount,size=10m "$0"
"$@" --out "$0/masks"
echo "code $?"
cp -r "$0/masks" "$0.kept"
"""
"""Runs a command twice, on a disk that is full after some masks, and with room again."""


@pytest.mark.skipif(own_mounts() is None, reason="this machine allows no mounts of its own")
def test_a_full_disk_ends_a_run_and_fails_no_case(cases: Path) -> None:
    for number in range(COUNT):
        save_scan(cases.parent / "scans" / f"n{number}.nii.gz", number, (60, 50, 40))
    (cases.parent / "disk").mkdir()
    words = command("batch", "--manifest", cases)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    asked = [*(own_mounts() or ()), "sh", "-c", FULL, str(cases.parent / "disk"), *words]
    done = subprocess.run(asked, env=environment, capture_output=True, text=True)
    first, code, second, again = done.stdout.splitlines()
    assert (code, again) == ("code 3", "code 0"), done.stderr
    assert "cannot be written (No space left on device)" in done.stderr
    assert ", 0 failed, " in first
    segmented = int(first.split()[0])
    assert 0 < segmented < COUNT
    assert second.startswith(f"{COUNT - segmented} segmented, {segmented} found finished, 0 failed;")
    kept = cases.parent / "disk.kept"
    assert len(written(kept)) == COUNT
    assert not list(kept.rglob("*.part"))
    assert run("collect", kept).exit_code == 0
