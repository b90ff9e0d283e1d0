"""A cohort of forty small scans, one of them broken and one long, and what must hold whatever ran its shards.

Knows nothing of what runs them.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import nibabel as nib

from tests.support.commands import run
from tests.support.heads import head, image
from voxtile.batch.record import sha256_of

SCANS = 40
BROKEN, LONG = 22, 19
"""LONG takes so long that its process is killed meanwhile. They are in different shards, of two and of four."""

NAMES = tuple(f"{number:02d}" for number in range(SCANS))
WHOLE = {name for name in NAMES if name != NAMES[BROKEN]}


def write_cases(folder: Path) -> Path:
    """Writes the scans below `folder`; returns their manifest."""
    (folder / "scans").mkdir()
    for number, name in enumerate(NAMES):
        shape = (120, 120, 120) if number == LONG else (33, 32, 32)
        nib.save(image(head(shape, seed=number)), folder / "scans" / f"{name}.nii.gz")
    (folder / "scans" / f"{NAMES[BROKEN]}.nii.gz").write_bytes(b"no scan")
    assert run("manifest", folder / "scans", "-o", folder / "cases.csv").exit_code == 0
    return folder / "cases.csv"


def write_programs(folder: Path, note: str) -> Path:
    """Writes programs `voxtile` and `python3` of this environment.

    Args:
        folder: where they are; it is made.
        note: what the shell does before `voxtile` begins, such as writing down its process id `$$`.

    Returns:
        `folder`, for the PATH.
    """
    folder.mkdir(parents=True)
    for name, words in (("voxtile", "-m voxtile"), ("python3", "")):
        path = folder / name
        path.write_text(f'#!/bin/sh\n{note if name == "voxtile" else ""}\nexec "{sys.executable}" {words} "$@"\n')
        path.chmod(0o755)
    return folder


def environment(programs: Path, **variables: str) -> dict[str, str]:
    """The variables of a shell that finds `programs` and this project's packages."""
    path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": os.pathsep.join(sys.path), **variables}


def kill(calls: Path, words: str) -> None:
    """Kills the newest process whose call, in a file of lines `PID WORDS`, has these words."""
    pids = [line.split()[0] for line in calls.read_text().splitlines() if words in line]
    os.kill(int(pids[-1]), signal.SIGKILL)


def written(place: Path) -> dict[str, int]:
    """When each mask was written, in nanoseconds."""
    return {path.name.removesuffix(".nii.gz"): path.stat().st_mtime_ns for path in place.glob("*.nii.gz")}


def lines(place: Path) -> list[dict[str, Any]]:
    """All lines of all shards; each is whole."""
    files = sorted((place / ".voxtile-batch" / "shards").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def check_interrupted(place: Path) -> dict[str, int]:
    """Checks what is there after the process at LONG was killed; returns when each mask was written."""
    before = written(place)
    assert set(before) < WHOLE - {NAMES[LONG]}
    assert run("collect", place).exit_code == 75
    return before


def check_finished(place: Path, before: dict[str, int]) -> None:
    """Checks the end: a mask for each case but the broken one, each written once, and one table.

    Args:
        place: the folder of masks.
        before: when the masks were written that were there before the last run.
    """
    after = written(place)
    assert set(after) == WHOLE
    assert {name: after[name] for name in before} == before, "a mask was written again"
    done = [line for line in lines(place) if line["status"] == "done"]
    assert Counter(line["case"] for line in done) == Counter(WHOLE), "each was written once"
    assert {line["case"]: line["output_sha256"] for line in done} == {
        name: sha256_of(place / f"{name}.nii.gz") for name in WHOLE
    }
    assert run("collect", place).exit_code == 1
    with (place / "results.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == list(NAMES)
    assert [row["case"] for row in rows if row["status"] != "done"] == [NAMES[BROKEN]]
    assert (rows[BROKEN]["status"], rows[BROKEN]["error_kind"]) == ("failed", "InputError")
