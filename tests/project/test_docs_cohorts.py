"""The page about cohorts: its commands work as they stand, on the real server, and its tables agree with the code."""

from __future__ import annotations

import re
import shlex
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

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "cohorts.md").read_text(encoding="utf-8")


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
