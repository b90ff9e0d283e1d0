"""The array script of server/deploy/slurm on a real Slurm, with the real server: a task killed, a scan broken."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.support.cohorts import (
    BROKEN,
    LONG,
    NAMES,
    SCANS,
    WHOLE,
    check_finished,
    check_interrupted,
    environment,
    lines,
    write_cases,
    write_programs,
    written,
)
from tests.support.commands import run
from tests.support.heads import head, image
from tests.support.slurm import Slurm, slurm
from voxtile import Segmenter
from voxtile_server.embedded import EmbeddedServer

SCRIPT = Path(__file__).parents[2] / "server" / "deploy" / "slurm" / "cohort.sh"
SNAKEMAKE = SCRIPT.parents[1] / "snakemake"
FITS = ("--cpus-per-task=1", "--mem=0")
"""The node of the test is a small one."""

TASKS = 4

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A Slurm whose jobs find `voxtile` and `python3` of this environment."""
    folder = tmp_path_factory.mktemp("slurm")
    note = f'echo $$ >"{folder}/$SLURM_ARRAY_JOB_ID-$SLURM_ARRAY_TASK_ID"'
    programs = write_programs(folder / "bin", note)
    with slurm(folder / "cluster") as running:
        yield Slurm(running.folder, {**running.environment, **environment(programs)})


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    return write_cases(tmp_path)


def test_an_array_whose_task_is_killed_is_finished_by_the_next(
    cluster: Slurm, cases: Path, server: EmbeddedServer
) -> None:
    place = cases.with_name("masks")
    what = {"MANIFEST": str(cases), "PLACE": str(place), "MODEL": "small-unet", "VOXTILE_URL": server.grpc_url}
    first = cluster.submit(SCRIPT, *FITS, f"--array=0-{TASKS - 1}", **what)
    while NAMES[LONG - TASKS] not in written(place):  # the case before it in its shard
        time.sleep(0.05)
    os.kill(int((cluster.folder.parent / f"{first}-{LONG % TASKS}").read_text()), signal.SIGKILL)
    states = cluster.ended(first)
    assert Counter(states.values())["COMPLETED 0:0"] == TASKS - 2, cluster.logs()
    assert states[BROKEN % TASKS] == "FAILED 1:0", cluster.logs()
    assert states[LONG % TASKS] == "FAILED 137:0", cluster.logs()
    before = check_interrupted(place)
    lost = {NAMES[number] for number in range(LONG, SCANS, TASKS)}
    assert set(before) == WHOLE - lost

    again = cluster.submit(SCRIPT, *FITS, f"--array=0-{TASKS - 1}", OPTIONS="--retry-failed --quiet", **what)
    states = cluster.ended(again)
    assert {task for task, state in states.items() if state != "COMPLETED 0:0"} == {BROKEN % TASKS}, cluster.logs()
    check_finished(place, before)
    assert {line["shard"] for line in lines(place)} == {f"{task}/{TASKS}" for task in range(TASKS)}
    with Segmenter(server.grpc_url, "small-unet") as segmenter:
        alone = segmenter(cases.with_name("scans") / f"{NAMES[LONG]}.nii.gz")
    np.testing.assert_array_equal(nib.load(place / f"{NAMES[LONG]}.nii.gz").dataobj, alone.dataobj)


def test_a_task_has_a_server_of_its_own_and_is_told_of_its_time_limit(
    cluster: Slurm, cases: Path, repository: Path
) -> None:
    place = cases.with_name("masks")
    what = {"MANIFEST": str(cases), "PLACE": str(place), "MODEL": "small-unet", "REPOSITORY": str(repository)}
    job = cluster.submit(SCRIPT, *FITS, "--array=0-0", "--no-requeue", **what)
    while "17" not in written(place):  # the next but one is long
        assert cluster.ask("squeue", "--noheader", "--jobs", job, check=False), cluster.logs()
        time.sleep(0.05)
    cluster.ask("scancel", "--signal=USR1", "--batch", f"{job}_0")  # as --signal=B:USR1 does before the limit
    assert cluster.ended(job)[0] == "FAILED 75:0", cluster.logs()
    assert run("collect", place).exit_code == 75
    assert NAMES[LONG] not in written(place)


@pytest.mark.parametrize("missing", ["MANIFEST", "PLACE", "MODEL", "VOXTILE_URL"])
def test_a_script_without_what_it_needs_is_refused(cluster: Slurm, missing: str) -> None:
    what = dict.fromkeys(("MANIFEST", "PLACE", "MODEL", "VOXTILE_URL"), "any")
    job = cluster.submit(SCRIPT, *FITS, "--array=0-0", **{name: what[name] for name in what if name != missing})
    assert cluster.ended(job)[0] == "FAILED 2:0"
    assert f"expected {missing}" in cluster.logs()


def test_snakemake_gives_its_shards_to_slurm(cluster: Slurm, server: EmbeddedServer, tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    for number in range(4):
        nib.save(image(head((33, 32, 32), seed=number)), tmp_path / "scans" / f"{number}.nii.gz")
    # The plugin hides Slurm's variables from a job, in which this cluster's configuration is told.
    programs = write_programs(tmp_path / "bin", f'echo "$SLURM_JOB_ID" >>"{tmp_path}/jobs"')
    srun = programs / "srun"
    srun.write_text(f'#!/bin/sh\nSLURM_CONF={cluster.environment["SLURM_CONF"]} exec {shutil.which("srun")} "$@"\n')
    srun.chmod(0o755)
    path = f"{programs}:{cluster.environment['PATH']}"
    words = ["snakemake", "--snakefile", SNAKEMAKE / "Snakefile", "--profile", SNAKEMAKE / "slurm"]
    # This cluster keeps no accounts, which sacct would read.
    words += [
        "--slurm-status-command",
        "squeue",
        "--default-resources",
        "slurm_partition=main",
        "--config",
        "scans=scans",
    ]
    words += ["place=masks", "model=small-unet", f"url={server.grpc_url}", "shards=2"]
    done = subprocess.run(
        list(map(str, words)),
        cwd=tmp_path,
        env={**cluster.environment, "PATH": path},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout
    assert set(written(tmp_path / "masks")) == {"0", "1", "2", "3"}
    assert run("collect", tmp_path / "masks").exit_code == 0
    jobs = [job for job in (tmp_path / "jobs").read_text().split() if job]
    assert len(set(jobs)) == 2, "each shard was a job of Slurm"
