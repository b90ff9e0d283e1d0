"""The array script of server/deploy/slurm on a real Slurm, with the real server: a task killed, a scan broken."""

from __future__ import annotations

import csv
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.support.commands import run
from tests.support.heads import head, image
from tests.support.slurm import Slurm, slurm
from voxtile import Segmenter
from voxtile_server.embedded import EmbeddedServer

SCRIPT = Path(__file__).parents[2] / "server" / "deploy" / "slurm" / "cohort.sh"
FITS = ("--cpus-per-task=1", "--mem=0")
"""The node of the test is a small one."""

TASKS, SCANS = 4, 10
BROKEN, LONG = 6, 9
"""LONG is the last case of the shard whose task is killed; a long one, so that it is at work then."""

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A Slurm whose jobs find `voxtile` and `python3` of this environment."""
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "bin").mkdir()
    for name, words in (("voxtile", "-m voxtile"), ("python3", "")):
        note = f'echo $$ >"{folder}/$SLURM_ARRAY_JOB_ID-$SLURM_ARRAY_TASK_ID-{name}"'
        (folder / "bin" / name).write_text(f'#!/bin/sh\n{note}\nexec "{sys.executable}" {words} "$@"\n')
        (folder / "bin" / name).chmod(0o755)
    with slurm(folder / "cluster") as running:
        environment = {
            **running.environment,
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        yield Slurm(running.folder, environment)


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    for number in range(SCANS):
        shape = (120, 120, 120) if number == LONG else (33, 32, 32)
        path = tmp_path / "scans" / f"{number:02d}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        nib.save(image(head(shape, seed=number)), path)
    (tmp_path / "scans" / f"{BROKEN:02d}.nii.gz").write_bytes(b"no scan")
    assert run("manifest", tmp_path / "scans", "-o", tmp_path / "cases.csv").exit_code == 0
    return tmp_path / "cases.csv"


def written(place: Path) -> dict[str, int]:
    """When each mask was written."""
    return {path.name.removesuffix(".nii.gz"): path.stat().st_mtime_ns for path in place.glob("*.nii.gz")}


def test_an_array_whose_task_is_killed_is_finished_by_the_next(
    cluster: Slurm, cases: Path, server: EmbeddedServer
) -> None:
    place = cases.with_name("masks")
    what = {"MANIFEST": str(cases), "PLACE": str(place), "MODEL": "small-unet", "VOXTILE_URL": server.grpc_url}
    first = cluster.submit(SCRIPT, *FITS, f"--array=0-{TASKS - 1}", **what)
    while "05" not in written(place):  # the shard of the long scan, just before it
        time.sleep(0.05)
    os.kill(int((cluster.folder.parent / f"{first}-{LONG % TASKS}-voxtile").read_text()), signal.SIGKILL)
    states = cluster.ended(first)
    assert Counter(states.values())["COMPLETED 0:0"] == TASKS - 2, cluster.logs()
    assert states[BROKEN % TASKS] == "FAILED 1:0", cluster.logs()
    assert states[LONG % TASKS] == "FAILED 137:0", cluster.logs()
    before = written(place)
    assert set(before) == {f"{number:02d}" for number in range(SCANS) if number not in (BROKEN, LONG)}
    assert run("collect", place).exit_code == 75

    again = cluster.submit(SCRIPT, *FITS, f"--array=0-{TASKS - 1}", OPTIONS="--retry-failed --quiet", **what)
    states = cluster.ended(again)
    assert {task for task, state in states.items() if state != "COMPLETED 0:0"} == {BROKEN % TASKS}, cluster.logs()
    after = written(place)
    assert {name: after[name] for name in before} == before, "each mask is written once"
    assert len(after) == SCANS - 1
    assert run("collect", place).exit_code == 1
    with (place / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == [f"{number:02d}" for number in range(SCANS)]
    assert {row["case"]: row["status"] for row in rows if row["status"] != "done"} == {f"{BROKEN:02d}": "failed"}
    assert {row["shard"] for row in rows} == {f"{task}/{TASKS}" for task in range(TASKS)}
    with Segmenter(server.grpc_url, "small-unet") as segmenter:
        alone = segmenter(cases.with_name("scans") / f"{LONG:02d}.nii.gz")
    np.testing.assert_array_equal(nib.load(place / f"{LONG:02d}.nii.gz").dataobj, alone.dataobj)


def test_a_task_has_a_server_of_its_own_and_is_told_of_its_time_limit(
    cluster: Slurm, cases: Path, repository: Path
) -> None:
    place = cases.with_name("masks")
    what = {"MANIFEST": str(cases), "PLACE": str(place), "MODEL": "small-unet", "REPOSITORY": str(repository)}
    job = cluster.submit(SCRIPT, *FITS, "--array=0-0", "--no-requeue", **what)
    while "05" not in written(place):
        assert cluster.ask("squeue", "--noheader", "--jobs", job, check=False), cluster.logs()
        time.sleep(0.05)
    cluster.ask("scancel", "--signal=USR1", "--batch", f"{job}_0")  # as --signal=B:USR1 does before the limit
    assert cluster.ended(job)[0] == "FAILED 75:0", cluster.logs()
    assert run("collect", place).exit_code == 75
    assert f"{LONG:02d}" not in written(place)


@pytest.mark.parametrize("missing", ["MANIFEST", "PLACE", "MODEL", "VOXTILE_URL"])
def test_a_script_without_what_it_needs_is_refused(cluster: Slurm, missing: str) -> None:
    what = dict.fromkeys(("MANIFEST", "PLACE", "MODEL", "VOXTILE_URL"), "any")
    job = cluster.submit(SCRIPT, *FITS, "--array=0-0", **{name: what[name] for name in what if name != missing})
    assert cluster.ended(job)[0] == "FAILED 2:0"
    assert f"expected {missing}" in cluster.logs()
