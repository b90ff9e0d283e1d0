"""`voxtile dicom`: checked before any work, the SEG first, nothing in another file's place, no word of the patient."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

from tests.support import dicom_findings as made
from tests.support import dicom_series as series
from tests.support.commands import refused, run
from tests.support.in_memory import InMemoryTransport
from voxtile.errors import OutputError

MODEL = ("--model", "phantom", "--url", "memory:1")
CANARY = "CANARYVALUE"
CARD = made.card_for(["liver", "kidney_left", "odd"])


class Counting:
    """A network that counts its tiles, and gives labels by the brightness of the first channel."""

    def __init__(self) -> None:
        self.tiles = 0

    def __call__(self, tiles: NDArray[Any]) -> NDArray[Any]:
        self.tiles += len(tiles)
        value = tiles[:, :1]
        limits = (100.0, 400.0, 600.0)
        scores = [np.full_like(value, 50.0), *(np.where(value > limit, limit, 0.0) for limit in limits)]
        return np.concatenate(scores, axis=1).astype(np.float32)


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Counting:
    counting = Counting()
    monkeypatch.setattr("voxtile.segmenter.connect_transport", lambda *_: InMemoryTransport(CARD, counting))
    return counting


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a series, named `in`."""
    voxels, affine = made.scan()
    datasets = series.slices(
        voxels, affine, PatientName=f"{CANARY}^Egg", PatientID=CANARY, AccessionNumber=CANARY, StudyID=CANARY,
        StudyDescription=CANARY, SeriesDescription=CANARY, InstitutionName=CANARY, PatientAddress=CANARY,
    )  # fmt: skip
    series.saved(datasets, tmp_path / "in")
    return tmp_path


def labels_in(folder: Path) -> NDArray[Any]:
    return np.asarray(nib.load(folder / "mask.nii.gz").dataobj)


def test_all_objects_of_one_series(network: Counting, folder: Path) -> None:
    report = folder / "r.json"
    result = run(
        "dicom", folder / "in", folder / "out" / "new", *MODEL, "--sr", "--sc", "--rtstruct", "--nifti",
        "--preview", folder / "p.png", "--json", report,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    out = folder / "out" / "new"
    names = {"seg.dcm", "sr.dcm", "sc.dcm", "rtstruct.dcm", "mask.nii.gz"}
    assert {path.name for path in out.iterdir()} == names
    read = {name: pydicom.dcmread(out / name) for name in names if name.endswith(".dcm")}
    assert {one.PatientID for one in read.values()} == {CANARY}
    assert {one.StudyDescription for one in read.values()} == {CANARY}
    assert len({one.StudyInstanceUID for one in read.values()}) == 1
    assert len({one.SeriesInstanceUID for one in read.values()}) == 4
    assert {one.Modality for one in read.values()} == {"SEG", "SR", "OT", "RTSTRUCT"}
    for one in read.values():
        (equipment,) = one.ContributingEquipmentSequence
        assert json.loads(equipment.ContributionDescription)["model"] == "phantom"
    labels = labels_in(out)
    assert set(np.unique(labels)) == {0, 1, 2, 3}
    volumes = json.loads(report.read_text())["labels"]
    assert volumes["liver"]["voxels"] == np.count_nonzero(labels == 1)
    seen = made.numbers_by_frame(out / "seg.dcm", folder / "in")
    assert np.array_equal(seen, labels)


@pytest.mark.parametrize("name", ["seg.dcm", "sr.dcm", "sc.dcm", "rtstruct.dcm", "mask.nii.gz"])
def test_each_says_what_made_it(name: str, network: Counting, folder: Path) -> None:
    out = folder / "out"
    options = ("--sr", "--sc", "--rtstruct", "--nifti", "-q", "--overlap", "0.5")
    assert run("dicom", folder / "in", out, *MODEL, *options).exit_code == 0
    said = run("why", out / name, "--json")
    assert said.exit_code == 0, said.output
    passport = json.loads(said.stdout)["passport"]
    assert passport["model"] == "phantom"
    assert passport["weights_sha256"] == CARD.provenance.weights_sha256
    assert passport["changes"] == ["overlap 0.25 -> 0.5"]
    assert CANARY not in said.stdout


def test_what_is_told_names_no_patient(network: Counting, folder: Path) -> None:
    report = folder / "r.json"
    result = run("dicom", folder / "in", folder / "out", *MODEL, "--sr", "--json", report)
    assert result.exit_code == 0
    assert CANARY not in result.output + result.stderr + report.read_text()
    assert "no code is known for odd" in result.stderr
    assert "no code is known for odd" in " ".join(json.loads(report.read_text())["warnings"])
    assert run("dicom", folder / "in", folder / "out", *MODEL, "-q").stderr == ""


def test_the_seg_alone_and_again(network: Counting, folder: Path) -> None:
    for _ in range(2):
        assert run("dicom", folder / "in", folder / "s.DCM", *MODEL, "--seg", "labelmap").exit_code == 0
        read = pydicom.dcmread(folder / "s.DCM")
        assert (read.SegmentationType, read.file_meta.TransferSyntaxUID.name) == ("LABELMAP", "RLE Lossless")
    assert {path.name for path in folder.iterdir()} == {"in", "s.DCM"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["in", "in"], "lies in the scan's own folder"),
        (["in", "in/out"], "lies in the scan's own folder"),
        (["in", "link/out"], "lies in the scan's own folder"),
        (["in", "file"], "expected a folder or a name that ends in .dcm, found a file"),
        (["in", "file/out"], "file"),
        (["in", "in/0000.dcm"], "lies in the scan's own folder"),
        (["in", "protected.dcm"], "protected"),
        (["in", "none/s.dcm"], "make it first"),
        (["in", "s.dcm", "--sr"], "expected a folder for --sr"),
        (["in", "s.dcm", "--rtstruct"], "expected a folder for --rtstruct"),
        (["in", "s.dcm", "--nifti"], "expected a folder for --nifti"),
        (["in", "out", "--json", "in/0000.dcm"], "ends in .json"),
        (["in", "out", "--preview", "p.jpg"], "ends in .png"),
        (["in", "out", "--probabilities", "p.npz"], "not an nnU-Net model"),
        (["in", "taken"], "found a folder"),
    ],
)
def test_everything_is_checked_before_any_tile(
    network: Counting, folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(folder)
    (folder / "link").symlink_to("in")
    (folder / "file").write_text("kept")
    (folder / "protected.dcm").write_text("kept")
    (folder / "protected.dcm").chmod(0o444)
    (folder / "taken" / "seg.dcm").mkdir(parents=True)
    before = [path.name for path in folder.iterdir()]
    assert said in refused(run("dicom", *arguments, *MODEL), folder, *before)
    assert network.tiles == 0


def test_an_existing_folder_keeps_what_is_in_it(network: Counting, folder: Path) -> None:
    out = folder / "out"
    out.mkdir()
    (out / "notes.txt").write_text("kept")
    assert run("dicom", folder / "in", out, *MODEL).exit_code == 0
    assert {path.name for path in out.iterdir()} == {"seg.dcm", "notes.txt"}
    assert (out / "notes.txt").read_text() == "kept"


def fail(*_: object, **__: object) -> None:
    raise OutputError("the thing could not be made")


@pytest.mark.parametrize(
    ("place", "missing"),
    [("report_of", "sr.dcm"), ("capture_of", "sc.dcm"), ("structure_set_of", "rtstruct.dcm")],
)
def test_what_fails_costs_nothing_else(
    network: Counting, folder: Path, monkeypatch: pytest.MonkeyPatch, place: str, missing: str
) -> None:
    monkeypatch.setattr(f"voxtile.outputs.dicom.write.{place}", fail)
    result = run("dicom", folder / "in", folder / "out", *MODEL, "--sr", "--sc", "--rtstruct", "-q")
    assert result.exit_code == 2
    assert "the thing could not be made; the SEG is written to" in result.stderr
    names = {"seg.dcm", "sr.dcm", "sc.dcm", "rtstruct.dcm"} - {missing}
    assert {path.name for path in (folder / "out").iterdir()} == names


def test_a_seg_that_fails_costs_no_mask(network: Counting, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what a library says of the headers is not repeated."""

    def broken(*_: object) -> None:
        raise ValueError(f"invalid name {CANARY}")

    monkeypatch.setattr("voxtile.outputs.dicom.seg._seg", broken)
    result = run("dicom", folder / "in", folder / "out", *MODEL, "--nifti", "-q")
    assert result.exit_code == 2
    assert "the DICOM SEG could not be made of this scan (ValueError in test_dicom_command.py" in result.stderr
    assert CANARY not in result.stderr
    assert {path.name for path in (folder / "out").iterdir()} == {"mask.nii.gz"}


def test_a_scan_that_is_no_dicom_is_refused(network: Counting, tmp_path: Path) -> None:
    voxels, affine = made.scan()
    nib.save(nib.Nifti1Image(voxels, affine), tmp_path / "scan.nii.gz")
    line = refused(run("dicom", tmp_path / "scan.nii.gz", tmp_path / "out", *MODEL), tmp_path, "scan.nii.gz")
    assert "expected DICOM, found another format" in line
    assert "voxtile segment" in line
    assert network.tiles == 0
