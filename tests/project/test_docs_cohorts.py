"""The page about cohorts: its commands work as they stand, on the real server, and its tables agree with the code."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.support.commands import run
from tests.support.heads import head, image
from voxtile import Segmenter
from voxtile.batch.cohort.columns import columns_of
from voxtile.batch.cohort.shard import AWS_SIZE, COUNT, ENGINES
from voxtile.batch.cohort.table import read_table
from voxtile.batch.summary import EXIT_SERVERS_FAILED, EXIT_SOME_FAILED, EXIT_STOPPED
from voxtile_server.embedded import EmbeddedServer

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "server" / "deploy"
PAGE = (ROOT / "docs" / "how-to" / "cohorts.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_commands_of_the_page_segment_a_folder(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        (tmp_path / "scans" / str(number)).mkdir(parents=True)
        nib.save(image(head((33, 32, 32), seed=number)), tmp_path / "scans" / str(number) / "ct.nii.gz")
    (tmp_path / "scans" / "broken.nii").write_bytes(b"no scan")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VOXTILE_URL", server.grpc_url)
    first, again = (block.replace("--model mine", "--model small-unet").splitlines() for block in blocks("sh"))
    codes = [run(*shlex.split(line)[1:]).exit_code for line in first]
    assert codes == [0, 0, 1, 1], "the broken scan is the fourth case"
    nib.save(image(head((33, 32, 32), seed=7)), tmp_path / "scans" / "broken.nii")
    assert [run(*shlex.split(line)[1:]).exit_code for line in (*again, first[-1])] == [0, 0]
    with Segmenter(server.grpc_url, "small-unet") as segmenter:
        for name in ("broken.nii", "0/ct.nii.gz", "2/ct.nii.gz"):
            mask = nib.load(tmp_path / "masks" / f"{name.partition('.')[0]}.nii.gz")
            np.testing.assert_array_equal(mask.dataobj, segmenter(tmp_path / "scans" / name).dataobj)
    rows = (tmp_path / "masks" / "results.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["case", "0/ct", "1/ct", "2/ct", "broken"]


def test_the_table_of_the_page_is_one_that_a_batch_reads() -> None:
    (text,) = blocks("csv")
    table = read_table(text.encode(), "page", "case")
    columns = columns_of(table.head, ["T1", "FLAIR"])
    assert {len(cells) for _, cells in table.rows} == {len(table.head)}
    assert {table.head[place] for place in (columns.case, *columns.files, columns.output, columns.options)} == {
        *table.head
    }


def test_the_page_names_the_variables_and_exit_codes_of_the_code() -> None:
    assert {*ENGINES, AWS_SIZE, COUNT} <= set(re.findall(r"`([A-Z_]+)`", PAGE))
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)}
    assert codes == {0, EXIT_SOME_FAILED, 2, EXIT_SERVERS_FAILED, EXIT_STOPPED}


def plain(program: str) -> list[list[str]]:
    """The words of each line of a block without a language that begins with this program."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    lines = [line for language, block in found if not language for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line.split()[0] == program]


def test_the_lines_of_sbatch_give_the_script_what_it_needs() -> None:
    script = (DEPLOY / "slurm" / "cohort.sh").read_text(encoding="utf-8")
    lines = [words for words in plain("sbatch") if words[-1].endswith("cohort.sh")]
    assert len(lines) == 2
    for words in lines:
        [said] = [word.removeprefix("--export=ALL,") for word in words if word.startswith("--export=ALL,")]
        names = {one.partition("=")[0] for one in said.split(",")}
        assert names >= {"MANIFEST", "PLACE", "MODEL"}
        assert names <= set(re.findall(r"^# ([A-Z_]+)", script.replace(", ", "\n# "), re.MULTILINE))


def test_the_lines_of_snakemake_make_a_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a dry run; tests/client/test_cohort_engines.py runs the Snakefile for real."""
    (tmp_path / "scans").mkdir()
    monkeypatch.chdir(tmp_path)
    lines = plain("snakemake")
    assert len(lines) == 2
    for words in lines:
        words[words.index("--snakefile") + 1] = str(ROOT / words[words.index("--snakefile") + 1])
        done = subprocess.run([sys.executable, "-m", *words, "--dry-run"], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("rule shard:") == 16
    assert not (tmp_path / "masks").exists()


def test_the_lines_of_nextflow_give_every_parameter_that_has_no_value() -> None:
    config = (DEPLOY / "nextflow" / "nextflow.config").read_text(encoding="utf-8")
    known = dict(re.findall(r"^    (\w+) += (\S+)$", config.partition("params {")[2].partition("\n}")[0], re.MULTILINE))
    [words] = plain("nextflow")
    given = {word.removeprefix("--") for word in words if word.startswith("--")}
    assert {name for name, value in known.items() if value == "null"} <= given <= known.keys()
    [profile] = [words[place + 1] for place, word in enumerate(words) if word == "-profile"]
    assert re.search(rf"^    {profile} {{", config.partition("profiles {")[2], re.MULTILINE)


def test_the_files_of_the_page_are_there() -> None:
    named = set(re.findall(r"server/deploy/[\w./-]*\w", PAGE))
    assert len(named) > 8
    assert [name for name in named if not (ROOT / name).exists()] == []
    for file in (DEPLOY / "kubernetes").iterdir():
        if file.name not in ("cpu.yaml", "models.yaml", "network.yaml"):
            assert file.name in PAGE
    [job] = [one for words in plain("kubectl") for one in words if one.startswith("job/")]
    assert f"name: {job.removeprefix('job/')}\n" in (DEPLOY / "kubernetes" / "cohort.yaml").read_text()
    [bucket] = re.findall(r"storageUri: (s3://\S+)\n", (DEPLOY / "kubernetes" / "kserve.yaml").read_text())
    assert re.search(rf"{re.escape(bucket)}(?![\w/-])", PAGE)


def test_the_images_of_the_client_have_one_tag() -> None:
    tags = {words[words.index("--tag") + 1] for words in plain("docker")}
    assert len(tags) == 1
    [tag] = tags
    assert f"image: {tag}\n" in (DEPLOY / "kubernetes" / "cohort.yaml").read_text()
    assert f"'{tag}'" in (DEPLOY / "nextflow" / "nextflow.config").read_text()
