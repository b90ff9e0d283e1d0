"""A name that moves between the shards of a cohort, and what is said of a mask after its name has moved."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from nibabel.loadsave import load

from tests.build.test_versions_served import eventually, polling, served
from tests.support.commands import run
from tests.support.versioned import NAME, mask_of, scan, two_versions
from voxtile_build.promoting import promote

CASES = 6


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return two_versions(tmp_path)


def versions_in(masks: Path) -> list[str]:
    """The version of each mask by the table, which must be that of its voxels and of its passport."""
    with (masks / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        found = np.asarray(load(masks / row["output"]).dataobj) == 1
        np.testing.assert_array_equal(found, mask_of(int(row["version"]), scan(int(row["case"]))))
        told = json.loads(run("why", masks / row["output"], "--json").stdout)
        assert told["passport"]["version"] == row["version"]
    return [row["version"] for row in rows]


def test_a_cohort_does_not_mix_versions_in_silence(
    repository: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scans, masks = tmp_path / "scans", tmp_path / "masks"
    scans.mkdir()
    for number in range(CASES):
        scan(number).to_filename(scans / f"{number}.nii.gz")
    assert run("manifest", scans, "-o", tmp_path / "cases.csv").exit_code == 0

    with polling(repository) as server:

        def shard(number: int, model: str) -> str:
            words = ("batch", "--manifest", tmp_path / "cases.csv", "--out", masks, "--shard", f"{number}/2")
            done = run(*words, "--model", model, "--url", server.grpc_url)
            assert done.exit_code == 0, done.stderr
            said = caplog.text
            caplog.clear()
            return said

        shard(0, NAME)
        promote(NAME, 2, repository)
        eventually(lambda: served(server.grpc_url, NAME) == "2")
        assert "masks there may be of several models, builds or options" in shard(1, NAME)
        mixed = run("collect", masks)
        assert mixed.exit_code == 0
        assert f"the masks are of several builds: 3 by {NAME} version 1, by onnxruntime" in mixed.stderr
        assert f"3 by {NAME} version 2, by onnxruntime" in mixed.stderr
        assert sorted(versions_in(masks)) == ["1"] * 3 + ["2"] * 3

        assert "segmented again" in shard(1, f"{NAME}@1")  # as the message says
        assert "segmented again" not in shard(0, f"{NAME}@1")
        one = run("collect", masks)
        assert (one.exit_code, one.stderr) == (0, "")
        assert versions_in(masks) == ["1"] * CASES

        mask = masks / "0.nii.gz"
        for file, known in (("all.json", ("--versions",)), ("public.json", ())):
            (tmp_path / file).write_text(run("models", "--url", server.grpc_url, "--json", *known).stdout)
        assert run("why", mask, "--check", "--url", server.grpc_url).exit_code == 0  # its version is there still
        assert run("why", mask, "--card", tmp_path / "all.json").exit_code == 0
        other = run("why", mask, "--card", tmp_path / "public.json")
        assert other.exit_code == 1
        assert "the model has the same version" in other.stdout
        for entry in ("tiny.v1", "tiny_onnxruntime"):
            (repository / entry).rename(tmp_path / entry)
        eventually(lambda: served(server.grpc_url, "tiny.v1") == "")
        gone = run("why", mask, "--check", "--url", server.grpc_url)
        assert gone.exit_code == 1
        assert "NO           the model has the same version" in gone.stdout
