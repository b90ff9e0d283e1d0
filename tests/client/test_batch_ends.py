"""The command `voxtile batch` as a process: ended by signals, with strange names, and with nobody who reads."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.in_memory_commands import finish, save_scan, start, transport
from voxtile import Segmenter, segment_folder

NAMES = [
    b"M\xfcller",
    b"a,b",
    b'say "c"',
    b"d\te",
    b"f\ng",
    b"h\r",
    "Müller".encode(),
    b"\x1b[31m",
    b" ",
    b"-o",
    b"=1+1",
]
"""Not UTF-8, and with what means something to a table, a terminal, a shell or a spreadsheet."""


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    for number in range(8):
        save_scan(tmp_path / "scans" / f"n{number}.nii.gz", number)
    return tmp_path / "scans"


def again_in_this_process(inputs: Path, masks: Path) -> dict[str, str]:
    """The status of each case after another run."""
    with Segmenter(transport=transport()) as segmenter:
        return {outcome.case: outcome.status for outcome in segment_folder(segmenter, inputs, masks).outcomes}


def statuses(masks: Path) -> dict[str, str]:
    """Of all cases, by both files of the summary, which agree."""
    with (masks / "summary.csv").open(newline="", encoding="utf-8") as file:
        table = {row["case"]: row["status"] for row in csv.DictReader(file)}
    rows = json.loads((masks / "summary.json").read_text(encoding="utf-8"))
    assert table == {row["case"].encode("utf-8", "backslashreplace").decode(): row["status"] for row in rows}
    return {row["case"]: row["status"] for row in rows}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)])
def test_whatever_ends_a_run_the_summary_knows_its_masks(inputs: Path, number: signal.Signals, code: int) -> None:
    masks = inputs.with_name("masks")
    running = start("batch", inputs, masks, seconds=0.05)
    while len(list(masks.glob("*.nii.gz"))) < 4:
        assert running.poll() is None, running.communicate()
        time.sleep(0.01)
    running.send_signal(number)
    ended, _, said = finish(running)
    assert ended == code
    assert "Traceback" not in said
    written = {path.name.removesuffix(".nii.gz") for path in masks.glob("*.nii.gz")}
    known = statuses(masks)
    done = {case for case, status in known.items() if status == "done"}
    assert len(known) == 8
    if number == signal.SIGKILL:
        assert len(written - done) <= 2  # the case whose mask was being written, and the summary's turn
    else:
        assert done == written
        assert not list(masks.rglob(".voxtile-*.part"))
    again = again_in_this_process(inputs, masks)
    assert {case for case, status in again.items() if status == "found"} == written
    assert {case for case, status in again.items() if status == "done"} == set(known) - written


SIGNALLED = """
import signal, sys
import typer
from voxtile.cli.console import errors_for_the_user

def main(number: int, ignored: bool) -> None:
    # Whatever started pytest may have ignored the signal, and a process inherits that.
    heard = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    signal.signal(number, signal.SIG_IGN if ignored else heard)
    before = signal.getsignal(number)
    try:
        with errors_for_the_user():
            signal.raise_signal(number)
    finally:
        print(signal.getsignal(number) is before)

typer.run(main)
"""
"""For a process of its own: a signal that nothing catches would end pytest."""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_signals_end_a_command_with_their_code(number: signal.Signals, code: int) -> None:
    done = subprocess.run([sys.executable, "-c", SIGNALLED, str(int(number)), "False"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (code, "True\n")
    assert "nothing half-written is left" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_that_nohup_ignores_ends_nothing(number: signal.Signals) -> None:
    done = subprocess.run([sys.executable, "-c", SIGNALLED, str(int(number)), "True"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


def test_names_are_whatever_a_file_system_takes(tmp_path: Path) -> None:
    inputs, masks = tmp_path / "scans", tmp_path / "masks"
    content = save_scan(tmp_path / "scan.nii.gz").read_bytes()
    inputs.mkdir()
    for name in NAMES:
        Path(os.fsdecode(os.path.join(os.fsencode(inputs), name + b".nii.gz"))).write_bytes(content)
    code, _, said = finish(start("batch", inputs, masks))
    assert (code, said) == (0, "")
    for status in ("done", "found"):
        assert statuses(masks) == {os.fsdecode(name): status for name in NAMES}
        assert {os.fsencode(path.name) for path in masks.glob("*.nii.gz")} == {name + b".nii.gz" for name in NAMES}
        again_in_this_process(inputs, masks)


def test_a_failure_is_one_line_whatever_the_name(tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    for name in NAMES:
        Path(os.fsdecode(os.path.join(os.fsencode(tmp_path / "scans"), name + b".nii"))).write_bytes(b"no scan")
    code, _, said = finish(start("batch", tmp_path / "scans", tmp_path / "masks"))
    assert code == 1
    lines = said.rstrip("\n").split("\n")
    assert len(lines) == len(NAMES)
    assert all(line.startswith("voxtile: ") and line.isprintable() for line in lines)


@pytest.mark.parametrize("stream", [1, 2])
def test_nobody_who_reads_costs_no_case(inputs: Path, stream: int) -> None:
    """Neither a stream that was never open nor a pipe whose reader has gone."""
    masks = inputs.with_name("masks")
    (inputs / "a.nii").write_bytes(b"no scan")
    reader, writer = os.pipe()
    os.close(reader)

    def before_it_begins() -> None:
        os.close(3 - stream)
        os.dup2(writer, stream)

    running = start("batch", inputs, masks, preexec_fn=before_it_begins, pass_fds=[writer])
    os.close(writer)
    assert finish(running)[0] == 1
    assert len(list(masks.glob("*.nii.gz"))) == 8


def test_the_last_line_counts_what_has_no_mask(inputs: Path) -> None:
    (inputs / "x.nii").write_bytes(b"no scan")
    (inputs / "y.nii").symlink_to("nowhere")
    code, told, said = finish(start("batch", inputs, inputs.with_name("masks")))
    assert code == 1
    assert "8 segmented, 0 found finished, 1 failed, 1 left out; see " in told
    assert "left out 1: a link that leads nowhere (y.nii)" in said
