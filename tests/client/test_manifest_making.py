"""A manifest of a folder: the cases that `voxtile batch` finds there, and nothing left out in silence."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import run
from voxtile.batch.cases import find_cases
from voxtile.batch.cohort.manifest import read_manifest

NNUNET = ("a_0000.nii.gz", "a_0001.nii.gz", "sub/b_0000.nrrd", "sub/b_0001.nrrd")
SESSIONS = (
    "sub-01/anat/sub-01_T1w.nii.gz",
    "sub-01/anat/sub-01_FLAIR.nii.gz",
    "sub-02/ses-1/anat/sub-02_ses-1_T1w.nii.gz",
    "sub-02/ses-1/anat/sub-02_ses-1_FLAIR.nii.gz",
)
PLAIN = ("x.nii", "patient_2023.nii.gz", "ü, \"1\";'2'.mha", "deep/er/x.nii.gz", "a b.nrrd")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "scans"


def fill(folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.mark.parametrize(
    ("names", "channels", "columns"),
    [
        (NNUNET, ["T2", "ADC"], ["channel_0000", "channel_0001"]),
        (SESSIONS, ["T1", "FLAIR"], ["FLAIR", "T1w"]),
        (PLAIN, ["CT"], ["image"]),
        (("a_0000.nii.gz", "b_0000.nii.gz"), ["CT"], ["image"]),
    ],
)
@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("place", ["cases.csv", "scans/cases.csv", "elsewhere/cases.csv"])
def test_a_batch_has_the_same_cases_by_the_manifest_as_by_the_folder(
    folder: Path, names: tuple[str, ...], channels: list[str], columns: list[str], told: bool, place: str
) -> None:
    fill(folder, names)
    manifest = folder.parent / place
    manifest.parent.mkdir(exist_ok=True)
    done = run("manifest", folder, "-o", manifest, *(["--channels", ",".join(channels)] if told else []))
    assert (done.exit_code, done.stderr) == (0, "")
    head = manifest.read_text(encoding="utf-8").splitlines()[0].split(",")
    assert head == ["case", *(channels if told else columns)]
    masks = folder.parent / "masks"
    read = read_manifest(manifest, masks, channels).cases
    found = find_cases(folder, masks, channels).cases
    assert [(case.name, case.mask) for case in read] == [(case.name, case.mask) for case in found]
    for one, other in zip(read, found, strict=True):
        assert [file.resolve() for file in one.files] == [file.resolve() for file in other.files]


def test_scans_with_all_channels_in_one_file_have_one_column(folder: Path) -> None:
    fill(folder, PLAIN)
    assert run("manifest", folder, "-o", folder.parent / "c.csv", "--channels", "T1,T2").exit_code == 0
    assert (folder.parent / "c.csv").read_text(encoding="utf-8").startswith("case,image\n")


def test_what_is_left_out_is_told_and_the_rest_is_written(folder: Path) -> None:
    fill(folder, (*NNUNET, "c_0000.nii.gz", "series/1.dcm"))
    (folder / "z_0000.nii.gz").hardlink_to(folder / "a_0000.nii.gz")
    (folder / "z_0001.nii.gz").symlink_to("a_0001.nii.gz")
    done = run("manifest", folder, "-o", folder.parent / "cases.csv")
    assert done.exit_code == 1
    said = done.stderr.splitlines()
    assert [line.partition(": ")[2].partition(":")[0] for line in said] == ["c", "z", "left out 1"]
    assert "2 cases" in done.stdout
    assert len((folder.parent / "cases.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("names", "arguments", "said"),
    [
        ((), (), "found nothing"),
        (("notes.txt",), (), "found none"),
        ((*SESSIONS, "sub-03/anat/sub-03_T1w.nii.gz"), (), "--channels"),
        (("a_0001.nii.gz",), ("--channels", "T1,T2"), "found none"),
        (PLAIN, ("--channels", "T1,,T2"), "--channels"),
        (PLAIN, ("--channels", "T1,t1"), "--channels"),
        (PLAIN, ("--channels", "T1", "--model", "x"), "found both"),
    ],
)
def test_a_folder_that_makes_no_manifest(
    folder: Path, names: tuple[str, ...], arguments: tuple[str, ...], said: str
) -> None:
    fill(folder, names)
    done = run("manifest", folder, "-o", folder.parent / "cases.csv", *arguments)
    assert done.exit_code == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (folder.parent / "cases.csv").exists()


def test_a_table_is_replaced_only_if_asked(folder: Path) -> None:
    fill(folder, PLAIN)
    manifest = folder.parent / "cases.csv"
    manifest.write_text("mine")
    assert "--overwrite" in run("manifest", folder, "-o", manifest).stderr
    assert manifest.read_text() == "mine"
    assert run("manifest", folder, "-o", manifest, "--overwrite").exit_code == 0
    assert manifest.read_text().startswith("case,image\n")


def test_a_name_that_no_table_can_hold_is_left_out(folder: Path) -> None:
    fill(folder, ("a.nii.gz", "M\udcfcller.nii.gz"))
    done = run("manifest", folder, "-o", folder.parent / "cases.csv")
    assert done.exit_code == 1
    assert "UTF-8" in done.stderr
    assert (folder.parent / "cases.csv").read_text() == "case,image\na,scans/a.nii.gz\n"


def test_a_name_that_is_no_case_is_left_out(folder: Path) -> None:
    fill(folder, ("a.nii.gz", "b\nc.nii.gz"))
    done = run("manifest", folder, "-o", folder.parent / "cases.csv")
    assert done.exit_code == 1
    assert "one line" in done.stderr
    assert (folder.parent / "cases.csv").read_text() == "case,image\na,scans/a.nii.gz\n"
