"""The benchmark of DICOM runs, and every program in it has the same voxels."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import JPEG2000Lossless

from bench.dicom.__main__ import main, parse
from bench.dicom.reading import digest
from bench.dicom.series import mask
from bench.scans import ct_values


@pytest.mark.system
def test_every_way_is_measured_and_has_the_same_voxels(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "bench.dicom", "--tiny", "--only", "JPEG 2000,25", "--out", str(tmp_path)]
    assert subprocess.run(words, check=False).returncode == 0
    told = json.loads((tmp_path / "dicom.json").read_text())
    assert told["left_out"] == []
    read, written = told["tables"].values()
    readers = ["Voxtile", "SimpleITK", "highdicom", "dcm2niix, to NIfTI", "the files' bytes alone"]
    assert [row["way"] for row in read] == readers
    assert [row["way"] for row in written] == [
        f"{way}, {kind}" for kind in ("BINARY", "LABELMAP") for way in ("Voxtile", "highdicom")
    ]
    for row in (*read[:-1], *written):
        assert row["same"] == "Voxtile's"
        assert row["seconds"] > 0
    assert all(row["bytes"] > 1000 for row in written)
    files = sorted((tmp_path / "data").glob("ct-64*-JPEG-2000/*.dcm"))
    assert {dcmread(file).file_meta.TransferSyntaxUID for file in files} == {JPEG2000Lossless}
    page = (tmp_path / "dicom.md").read_text()
    assert all(f"## {title}" in page for title in told["tables"])


def test_a_digest_knows_a_flip_and_a_number_and_nothing_of_the_order_in_memory() -> None:
    voxels, affine = ct_values((9, 8, 7)), np.diag([-1.0, -1.0, 1.0, 1.0])
    turned = voxels[::-1].transpose(2, 0, 1)
    same = np.array([[0.0, 1, 0, -8], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    assert digest(turned, same) == digest(voxels, affine)
    assert digest(voxels[::-1], affine) != digest(voxels, affine)
    assert digest(voxels + 1, affine) != digest(voxels, affine)


@pytest.mark.parametrize("structures", [1, 25, 104])
def test_a_mask_has_every_structure(structures: int) -> None:
    assert np.unique(mask((96, 96, 60), structures)).tolist() == list(range(structures + 1))


def test_a_way_that_differs_ends_with_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"way": "Voxtile", "same": "Voxtile's"}, {"way": "another", "same": "others"}]
    monkeypatch.setattr("bench.dicom.__main__.measure", lambda *_: rows)
    assert main(["--tiny", "--only", "1", "--out", str(tmp_path)]) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--only", "1,2"], "expected some of uncompressed,JPEG-LS,JPEG 2000,one object,1,25,104,objects, found 2"),
        (["--rivals", "/nowhere"], "expected a folder with totalsegmentator in it, found /nowhere"),
    ],
)
def test_a_wrong_command_line_is_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(words)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
