"""Forty scans, one broken, one process killed: by two shells, and by the Snakefile of server/deploy, each for real."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
import yaml

from tests.support.cohorts import (
    BROKEN,
    LONG,
    NAMES,
    check_finished,
    check_interrupted,
    environment,
    kill,
    write_cases,
    write_programs,
    written,
)
from tests.support.commands import run
from tests.support.heads import head, image
from voxtile_server.embedded import EmbeddedServer

FOLDER = Path(__file__).parents[2] / "server" / "deploy" / "snakemake"
SHARDS = 4
ENDS_WITHIN_S = 500.0


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    return write_cases(tmp_path)


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    return write_programs(tmp_path / "bin", f'echo "$$ $*" >>"{tmp_path}/calls"')


def shell(line: str, folder: Path, programs: Path, **variables: str) -> subprocess.Popen[str]:
    """Starts a shell with one line."""
    words = ["bash", "-c", line]
    return subprocess.Popen(
        words,
        cwd=folder,
        env=environment(programs, **variables),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit code of a shell, and what it said."""
    said, _ = process.communicate(timeout=ENDS_WITHIN_S)
    return process.returncode, said


def kill_at_the_long_scan(place: Path, shards: int, running: subprocess.Popen[str]) -> None:
    """Kills the process that has LONG, as it comes to it."""
    while NAMES[LONG - shards] not in written(place):
        assert running.poll() is None, running.communicate()
        time.sleep(0.05)
    kill(place.with_name("calls"), f"--shard {LONG % shards}/{shards}")


def test_two_shells(cases: Path, programs: Path, server: EmbeddedServer) -> None:
    place = cases.with_name("masks")
    line = "voxtile batch --quiet --manifest cases.csv --out masks --model small-unet --shard {}/2"
    shells = [shell(line.format(index), cases.parent, programs, VOXTILE_URL=server.grpc_url) for index in range(2)]
    kill_at_the_long_scan(place, 2, shells[LONG % 2])
    assert [ended(one)[0] for one in shells] == [1, -9], "a case that failed, and a process that was killed"
    before = check_interrupted(place)
    lines = [f"{line.format(index)} --retry-failed" for index in range(2)]
    shells = [shell(line, cases.parent, programs, VOXTILE_URL=server.grpc_url) for line in lines]
    assert [ended(one)[0] for one in shells] == [1, 0]
    check_finished(place, before)


def snakemake(cases: Path, programs: Path, url: str, *options: str) -> subprocess.Popen[str]:
    """Starts Snakemake on the cohort."""
    config = f"scans=scans place=masks model=small-unet url={url} shards={SHARDS}"
    line = f"snakemake --snakefile {FOLDER}/Snakefile --cores 2 --keep-going --config {config}"
    return shell(" ".join([line, *options]), cases.parent, programs)


def test_snakemake(cases: Path, programs: Path, server: EmbeddedServer) -> None:
    place = cases.with_name("masks")
    first = snakemake(cases, programs, server.grpc_url)
    kill_at_the_long_scan(place, SHARDS, first)
    code, said = ended(first)
    assert code == 1, said
    markers = {f"{index}-of-{SHARDS}" for index in range(SHARDS) if index not in (BROKEN % SHARDS, LONG % SHARDS)}
    assert {path.name for path in (place / ".shards").glob("*-of-*")} == markers, said
    table = place / "results.csv"
    assert table.exists(), "a table is there after a failure too"
    before = check_interrupted(place)
    code, said = ended(snakemake(cases, programs, server.grpc_url, "options=--retry-failed"))
    assert code == 1, said
    check_finished(place, before)
    assert len(table.read_text().splitlines()) == len(NAMES) + 1

    before = written(place)
    image(head((33, 32, 32), seed=BROKEN)).to_filename(cases.with_name("scans") / f"{NAMES[BROKEN]}.nii.gz")
    code, said = ended(snakemake(cases, programs, server.grpc_url))
    assert code == 0, said
    after = written(place)
    assert {name: after[name] for name in before} == before
    assert run("collect", place).exit_code == 0


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("place=masks scans=scans", "expected model"),
        ("model=any scans=scans", "expected place"),
        ("model=any place=masks", "expected scans or manifest"),
        ("model=any place=masks scans=scans manifest=cases.csv", "expected scans or manifest"),
        ("model=any place=masks scans=scans url=a:1 repository=models", "expected url or repository"),
        ("model=any place=masks scans=scans shards=0", "expected a number for shards"),
        ("model=any place=masks scans=scans shard=2", "found shard"),
        ("model=any place=masks scans=nowhere", "nowhere"),
    ],
)
def test_a_configuration_that_is_none(tmp_path: Path, programs: Path, config: str, said: str) -> None:
    (tmp_path / "scans").mkdir()
    line = f"snakemake --snakefile {FOLDER}/Snakefile --cores 1 --config {config}"
    code, told = ended(shell(line, tmp_path, programs))
    assert code == 1
    assert said in told
    assert not (tmp_path / "masks").exists()


def test_the_profile_gives_each_shard_to_slurm() -> None:
    profile = yaml.safe_load((FOLDER / "slurm" / "config.yaml").read_text(encoding="utf-8"))
    assert (profile["executor"], profile["keep-going"]) == ("slurm", True)
