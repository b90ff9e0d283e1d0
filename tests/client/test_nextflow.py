"""server/deploy/nextflow without Nextflow: its Groovy parsed, its scripts run for real, its meta.yml beside both."""

from __future__ import annotations

import csv
import re
import subprocess
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml

from tests.support.cohorts import environment, write_programs
from tests.support.groovy import parsed
from tests.support.heads import head, image
from tests.support.nextflow import Process
from voxtile import Segmenter
from voxtile.batch.summary import EXIT_SERVERS_FAILED, EXIT_STOPPED
from voxtile.version import __version__
from voxtile_server.embedded import EmbeddedServer

FOLDER = Path(__file__).parents[2] / "server" / "deploy" / "nextflow"
NAMES = ("manifest", "batch", "collect")
SHARDS = 3


def module(name: str) -> Path:
    return FOLDER / "modules" / "local" / "voxtile" / name


def process(name: str) -> Process:
    return Process((module(name) / "main.nf").read_text(encoding="utf-8"))


def meta(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((module(name) / "meta.yml").read_text(encoding="utf-8")))


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    (tmp_path / "scans" / "b").mkdir(parents=True)
    for number, name in enumerate(("a", "b/c", "d", "e")):
        nib.save(image(head((33, 32, 32), seed=number)), tmp_path / "scans" / f"{name}.nii.gz")
    (tmp_path / "scans" / "broken.nii.gz").write_bytes(b"no scan")
    return tmp_path / "scans"


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    return environment(write_programs(tmp_path / "bin", ""))


def test_the_scripts_make_masks_and_one_table(
    scans: Path, shell: dict[str, str], server: EmbeddedServer, tmp_path: Path
) -> None:
    first = process("manifest")
    done = first.run(tmp_path / "work" / "m", {first.staged["scans"]: scans}, {"args": ""}, shell)
    assert done.returncode == 0, done.stderr
    manifest = tmp_path / "work" / "m" / first.outputs["manifest"]

    batch, places = process("batch"), []
    for index in range(SHARDS):
        task = tmp_path / "work" / f"{index}"
        values = {"meta.shard": f"{index}/{SHARDS}", "model": "small-unet", "args": ""}
        values["servers"] = f"--url {server.grpc_url}"
        done = batch.run(task, {batch.staged["manifest"]: manifest, batch.staged["scans"]: scans}, values, shell)
        assert done.returncode == 0, done.stderr
        places.append(task / batch.outputs["masks"])

    collect = process("collect")
    staged = {collect.staged["places"].replace("?", str(n)): place for n, place in enumerate(places, 1)}
    task = tmp_path / "work" / "c"
    done = collect.run(task, staged, {}, shell)
    assert done.returncode == 0, done.stderr
    with (task / collect.outputs["table"]).open(newline="", encoding="utf-8") as file:
        rows = {row["case"]: row for row in csv.DictReader(file)}
    assert {name: row["status"] for name, row in rows.items()} == {
        **dict.fromkeys(("a", "b/c", "d", "e"), "done"),
        "broken": "failed",
    }
    assert len((task / collect.outputs["lines"]).read_text().splitlines()) == len(rows)
    with Segmenter(server.grpc_url, "small-unet") as segmenter:
        for name in ("a", "b/c"):
            mask = nib.load(task / collect.outputs["masks"] / f"{name}.nii.gz")
            np.testing.assert_array_equal(mask.dataobj, segmenter(scans / f"{name}.nii.gz").dataobj)


def test_a_shard_that_cannot_begin_ends_its_task(scans: Path, shell: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "cases.csv").write_text("case\n1\n")
    batch = process("batch")
    values = {"meta.shard": "3/3", "model": "any", "args": "", "servers": "--url localhost:1"}
    staged = {batch.staged["manifest"]: tmp_path / "cases.csv", batch.staged["scans"]: scans}
    done = batch.run(tmp_path / "work", staged, values, shell)
    assert done.returncode == 2, "by which nextflow.config knows what to try again"
    assert "expected a shard from 0/3 to 2/3" in done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_a_dry_run_has_the_outputs_too(name: str, shell: dict[str, str], tmp_path: Path) -> None:
    one = process(name)
    done = one.run(tmp_path / "work", {}, {}, shell, section="stub")
    assert done.returncode == 0, done.stderr
    assert all((tmp_path / "work" / path).exists() for path in one.outputs.values())
    told = subprocess.run(["bash", "-c", one.version], env=shell, capture_output=True, text=True).stdout.strip()
    assert told == __version__


@pytest.mark.parametrize("name", NAMES)
def test_meta_says_what_the_process_takes_and_gives(name: str) -> None:
    described, one = meta(name), process(name)
    assert described["name"] == f"voxtile_{name}"
    tuple_of = described["input"][0]
    flat = [key for part in (tuple_of, *described["input"][1:]) for key in _names(part)]
    assert flat == one.inputs
    assert list(described["output"]) == one.channels
    for channel, path in one.outputs.items():
        [parts] = described["output"][channel]
        assert [key for part in parts for key in part] == ["meta", path]
    assert one.version in str(described["topics"]["versions"])
    # What nf-core's schema of meta.yml wants beside that.
    assert {"description", "keywords", "tools", "authors"} <= described.keys()
    assert len(set(described["keywords"])) >= 3


def _names(part: Any) -> list[str]:
    return [key for one in part for key in one] if isinstance(part, list) else list(part)


@pytest.mark.parametrize("file", [FOLDER / "main.nf", *(module(name) / "main.nf" for name in NAMES)])
def test_the_groovy_can_be_parsed(file: Path, tmp_path: Path) -> None:
    found = parsed(file)
    assert not found.error
    assert set(found.processes) == ({f"VOXTILE_{file.parent.name.upper()}"} if file.parent != FOLDER else set())
    cut = tmp_path / "main.nf"
    cut.write_text(file.read_text(encoding="utf-8").rstrip().removesuffix("}"))
    assert parsed(cut).error, "the parser does bite"


def test_the_workflow_calls_the_processes_with_their_inputs() -> None:
    text = (FOLDER / "main.nf").read_text(encoding="utf-8")
    for name in NAMES:
        assert f"include {{ VOXTILE_{name.upper()}" in text
        assert f"from './modules/local/voxtile/{name}/main'" in text
    config = (FOLDER / "nextflow.config").read_text(encoding="utf-8")
    known = {line.split()[0] for line in config.partition("params {")[2].partition("}")[0].splitlines() if "=" in line}
    used = {name for one in FOLDER.rglob("*.nf") for name in re.findall(r"params\.(\w+)", one.read_text())}
    assert used | {"outdir"} == known
    again = re.search(r"task\.exitStatus in \[(\d+), (\d+)\]", config)
    assert again is not None
    assert {int(code) for code in again.groups()} == {EXIT_SERVERS_FAILED, EXIT_STOPPED}


def test_the_configuration_can_be_parsed() -> None:
    assert not parsed(FOLDER / "nextflow.config", "config").error
