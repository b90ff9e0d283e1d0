"""Commands take scans of every format and write masks in every format; what a scan leaves open is an option."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.commands import refused, run
from tests.support.in_memory_commands import transport
from tests.support.phantoms import affine_of, sampled
from tests.support.stored_formats import WRITERS, read_back
from voxtile.batch.run import segment_folder
from voxtile.io.formats.all import all_files
from voxtile.segmenter import Segmenter

MODEL = ("--model", "phantom", "--url", "memory:1", "-q")
SHAPE = (20, 18, 17)
AFFINE = affine_of(SHAPE, (1.5, 1.2, 2.0), "PLI", (12.0, 5.0, -7.0))


@pytest.fixture(autouse=True)
def network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voxtile.segmenter.connect_transport", lambda *_: transport())


def head() -> NDArray[np.int16]:
    """An asymmetric head, 0 outside."""
    return np.where(sampled(SHAPE, AFFINE) > 150, sampled(SHAPE, AFFINE), 0).astype(np.int16)


def scan(folder: Path, name: str, data: Any = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    WRITERS[name](folder / name, head() if data is None else data, AFFINE)
    return folder / name


@pytest.mark.parametrize("ending", [".nii.gz", ".nii.zst", ".IMG", ".mgz", ".nrrd", ".nhdr", ".mha", ".mhd", ".tif"])
@pytest.mark.parametrize("name", ["a.nii.xz", "a.hdr", "a.mgz", "b.nrrd", "a.mhd"])
def test_any_scan_gives_its_mask_in_any_format(tmp_path: Path, name: str, ending: str) -> None:
    path, mask = scan(tmp_path, name), tmp_path / f"mask{ending}"
    assert run("segment", path, "-o", mask, *MODEL).exit_code == 0
    labels, affine = read_back(mask)
    np.testing.assert_array_equal(labels, head() != 0)
    if ending != ".tif":
        np.testing.assert_allclose(affine, AFFINE, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "output"),
    [("a.img", "a.hdr"), ("a.hdr", "a.img"), ("a.img", "a.img"), ("a.mhd", "a.mhd"), ("a.mhd", "a.zraw"),
     ("a.nhdr", "a.raw.gz")],
)  # fmt: skip
def test_no_mask_takes_a_part_of_its_scans_place(tmp_path: Path, name: str, output: str) -> None:
    path = scan(tmp_path, name)
    before = {file.name: file.read_bytes() for file in all_files(path)}
    line = refused(run("segment", path, "-o", tmp_path / output, *MODEL), tmp_path, *before)
    assert "would replace the scan" in line or "ends in one of" in line
    assert {file.name: file.read_bytes() for file in all_files(path)} == before


def test_a_mask_of_two_files_replaces_neither_a_scan_nor_a_protected_file(tmp_path: Path) -> None:
    """mask.mhd brings mask.zraw along."""
    path = scan(tmp_path, "a.nii")
    (tmp_path / "mask.zraw").write_text("kept")
    (tmp_path / "mask.zraw").chmod(0o444)
    line = refused(run("segment", path, "-o", tmp_path / "mask.mhd", *MODEL), tmp_path, "a.nii", "mask.zraw")
    assert "protected" in line


def test_replaced_voxels_are_named_in_the_report(tmp_path: Path) -> None:
    data = head().astype(np.float32)
    data[0, 0, :2] = np.nan
    path, report = scan(tmp_path, "a.nii", data), tmp_path / "r.json"
    line = refused(run("segment", path, "-o", tmp_path / "m.nrrd", *MODEL), tmp_path, "a.nii")
    assert "found 2 that are NaN" in line
    assert "--nan VALUE" in line
    assert run("segment", path, "-o", tmp_path / "m.nrrd", "--nan", "0", "--json", report, *MODEL).exit_code == 0
    assert json.loads(report.read_text())["changes"] == ["NaN -> 0 in 2 voxels (any)"]
    np.testing.assert_array_equal(read_back(tmp_path / "m.nrrd")[0], head() != 0)


def test_sides_are_an_option(tmp_path: Path) -> None:
    """An Analyze scan of the same anatomy, told its axes, gives the same mask as the scan that says them itself."""
    nib.save(nib.AnalyzeImage(head(), np.diag([-1.5, 1.2, 2.0, 1.0])), tmp_path / "a.hdr")
    line = refused(run("segment", tmp_path / "a.hdr", "-o", tmp_path / "m.nii", *MODEL), tmp_path, "a.hdr", "a.img")
    assert "--orientation" in line
    result = run("segment", tmp_path / "a.img", "-o", tmp_path / "m.nii", "--orientation", "PLI", *MODEL)
    assert result.exit_code == 0
    mask = nib.load(tmp_path / "m.nii")
    np.testing.assert_array_equal(np.asarray(mask.dataobj), head() != 0)
    assert nib.aff2axcodes(mask.affine) == ("P", "L", "I")
    wrong = run("segment", tmp_path / "m.nii", "-o", tmp_path / "n.nii", "--orientation", "PLI", *MODEL)
    assert "leave out --orientation" in wrong.output
    odd = run("segment", tmp_path / "a.img", "-o", tmp_path / "n.nii", "--orientation", "PLX", *MODEL)
    assert (odd.exit_code, "three letters" in odd.output) == (2, True)


# Batches -----------------------------------------------------------------------------------------------------------


def test_a_folder_of_all_formats(tmp_path: Path) -> None:
    names = {name: scan(tmp_path / "in" / str(number), name) for number, name in enumerate(WRITERS)}
    with Segmenter(transport=transport()) as segmenter:
        result = segment_folder(segmenter, tmp_path / "in", tmp_path / "out")
        assert [outcome.status for outcome in result.outcomes] == ["done"] * len(names)
        assert (result.exit_code, result.left_out) == (0, ())
        for path in (tmp_path / "out").rglob("*.nii.gz"):
            np.testing.assert_array_equal(np.asarray(nib.load(path).dataobj), head() != 0)
        again = segment_folder(segmenter, tmp_path / "in", tmp_path / "out")
        assert [outcome.status for outcome in again.outcomes] == ["found"] * len(names)


@pytest.mark.parametrize("name", ["a.hdr", "a.mhd", "a.nhdr"])
def test_a_scan_whose_voxels_have_changed_is_made_again(tmp_path: Path, name: str) -> None:
    """The header is the same file as before."""
    path = scan(tmp_path / "in", name)
    with Segmenter(transport=transport()) as segmenter:
        segment_folder(segmenter, tmp_path / "in", tmp_path / "out")
        header = path.read_bytes()
        scan(tmp_path / "in", name, np.roll(head(), 1, 0))
        path.write_bytes(header)
        again = segment_folder(segmenter, tmp_path / "in", tmp_path / "out")
    assert [outcome.status for outcome in again.outcomes] == ["done"]
    np.testing.assert_array_equal(
        np.asarray(nib.load(tmp_path / "out" / "a.nii.gz").dataobj), np.roll(head(), 1, 0) != 0
    )


def test_one_case_in_two_formats_is_refused_by_name(tmp_path: Path) -> None:
    for name in ("a.nii", "a.nrrd"):
        scan(tmp_path / "in", name)
    result = run("batch", tmp_path / "in", tmp_path / "out", *MODEL)
    assert result.exit_code == 2
    assert "two cases would have this file" in result.output
    assert all(name in result.output.replace("\n", "") for name in ("a.nii", "a.nrrd"))
    for name in ("a.nii", "a.nrrd"):
        (tmp_path / "in" / name).rename(tmp_path / "in" / name.replace("a.", "a_0000."))
    numbered = run("batch", tmp_path / "in", tmp_path / "out", *MODEL)
    assert numbered.exit_code == 1
    assert "a_0000.nii, a_0000.nrrd" in numbered.output.replace("\n", "")


def test_masks_made_with_another_orientation_are_not_taken_for_finished(tmp_path: Path) -> None:
    """The first answer may have been wrong."""
    (tmp_path / "in").mkdir()
    nib.save(nib.AnalyzeImage(head(), np.diag([-1.5, 1.2, 2.0, 1.0])), tmp_path / "in" / "a.hdr")
    words = ("batch", tmp_path / "in", tmp_path / "out", *MODEL)
    assert run(*words).exit_code == 1
    assert run(*words, "--orientation", "LAS").exit_code == 0
    assert run(*words, "--orientation", "las").exit_code == 0
    other = run(*words, "--orientation", "RAS")
    assert (other.exit_code, "with other options" in other.output) == (2, True)
    assert nib.aff2axcodes(nib.load(tmp_path / "out" / "a.nii.gz").affine) == ("L", "A", "S")


def test_a_batch_says_what_it_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = head().astype(np.float32)
    data[0, 0, :2] = np.nan
    scan(tmp_path / "in", "a.nii", data)
    assert run("batch", tmp_path / "in", tmp_path / "out", *MODEL).exit_code == 1
    assert run("batch", tmp_path / "in", tmp_path / "out", *MODEL, "--nan", "0").exit_code == 0
    assert "a.nii: NaN -> 0 in 2 voxels" in caplog.text
