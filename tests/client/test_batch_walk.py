"""What lies in a folder of scans and has no mask afterwards is told, and counts if it may be a scan."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.in_memory_commands import save_scan, transport
from voxtile import InputError, OutputError, Segmenter, segment_folder
from voxtile.batch import walk as walking
from voxtile.batch.cases import find_cases, left_out_in_words
from voxtile.batch.walk import walk
from voxtile.outputs.regions import REGIONS


def dicom(path: Path) -> None:
    path.write_bytes(bytes(128) + b"DICM" + bytes(8))


def linked_folder(path: Path) -> None:
    elsewhere = path.parents[2] / "elsewhere"
    save_scan(elsewhere / "c.nii")
    path.symlink_to(elsewhere)


def folder_of_masks(path: Path) -> None:
    save_scan(path / "a.nii.gz")
    (path / "voxtile-batch.json").write_text("{}")


def empty(path: Path) -> None:
    path.write_bytes(b"")


MAY_BE_SCANS: list[tuple[str, Callable[[Path], Any], str]] = [
    ("b.nii.gz", lambda path: path.symlink_to("nowhere.nii.gz"), "leads nowhere"),
    ("b", lambda path: path.symlink_to("nowhere"), "leads nowhere"),
    ("loop.nii", lambda path: path.symlink_to("loop.nii"), "leads nowhere"),
    ("session2", linked_folder, "a linked folder"),
    ("e.gipl", empty, "a format that is not read"),
    ("E.MNC", empty, "a format that is not read"),
    ("e.img", empty, "voxels without their header"),
    ("f.nii.zip", empty, "a format that is not read"),
    ("IM0001", dicom, "DICOM; segment its series with voxtile dicom"),
    ("1.2.840.113", dicom, "DICOM; segment its series with voxtile dicom"),
    ("series/1.dcm", empty, "DICOM; segment its series with voxtile dicom"),
    ("g.nii.gz.part", empty, "not copied to its end"),
    ("pipe.nii", os.mkfifo, "a pipe"),
]
NO_SCANS: list[tuple[str, Callable[[Path], Any], str]] = [
    (".hidden.nii.gz", empty, "hidden"),
    ("._a.nii.gz", empty, "hidden"),
    (".git", lambda path: save_scan(path / "x.nii"), "hidden"),
    (".voxtile-0123.part", empty, "interrupted run"),
    ("nothing", lambda path: path.mkdir(), "an empty folder"),
    ("masks_before", folder_of_masks, "masks that voxtile batch has written"),
    ("loop", lambda path: path.symlink_to(path.parent), "a linked folder"),
    ("notes.txt", lambda path: path.symlink_to("nowhere"), "leads nowhere"),
]


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    save_scan(tmp_path / "scans" / "a.nii.gz")
    return tmp_path / "scans"


@pytest.mark.parametrize(("kinds", "code"), [(MAY_BE_SCANS, 1), (NO_SCANS, 0)])
def test_what_is_left_out_is_told_and_in_the_summary(
    inputs: Path, kinds: list[tuple[str, Callable[[Path], Any], str]], code: int
) -> None:
    for number, (name, make, _) in enumerate(kinds):  # a folder each, since those of one folder are counted together
        (inputs / str(number) / name).parent.mkdir(parents=True)
        make(inputs / str(number) / name)
    with Segmenter(transport=transport()) as segmenter:
        result = segment_folder(segmenter, inputs, inputs.with_name("masks"))
    assert [(outcome.case, outcome.status) for outcome in result.outcomes] == [("a", "done")]
    assert result.exit_code == code
    told = {one.path: one for one in result.left_out}
    with (inputs.with_name("masks") / "summary.csv").open(newline="") as file:
        rows = {row["case"]: row for row in csv.DictReader(file)}
    assert len(told) == len(rows) - 1 == len(kinds)
    for number, (name, _, reason) in enumerate(kinds):
        assert told[f"{number}/{name}"].may_be_scan == bool(code)
        assert reason in left_out_in_words([told[f"{number}/{name}"]])[0]
        assert rows[f"{number}/{name}"]["status"] == "left out"
        assert reason in rows[f"{number}/{name}"]["error"]


def test_what_is_plainly_no_scan_is_no_matter(inputs: Path) -> None:
    for name in ("participants.tsv", "a.json", "README", "a.bval", "T1"):
        (inputs / name).write_text("no scan")
    assert walk(inputs, inputs / "masks").left_out == []


def test_a_series_is_one_line(inputs: Path) -> None:
    for number in range(40):
        (inputs / f"{number:03d}.dcm").touch()
    (inputs / "b").mkdir()
    (inputs / "b" / "0.dcm").touch()
    found = walk(inputs, inputs / "masks").left_out
    assert [(one.path, one.others) for one in found] == [("000.dcm", 39), ("b/0.dcm", 0)]
    assert left_out_in_words(found) == [
        "left out 41: DICOM; segment its series with voxtile dicom, or convert it to NIfTI (000.dcm, b/0.dcm, …)"
    ]


def test_a_locked_folder_is_told(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read every folder, so that the refusal is made here."""
    save_scan(inputs / "locked" / "b.nii")
    listdir = os.listdir

    def refuse(path: Any) -> list[str]:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return listdir(path)

    monkeypatch.setattr(walking.os, "listdir", refuse)
    found = walk(inputs, inputs / "masks")
    assert [path.name for path in found.scans] == ["a.nii.gz"]
    assert [(one.path, one.may_be_scan) for one in found.left_out] == [("locked", True)]
    assert "Permission denied" in str(found.left_out[0])


def test_without_scans_the_error_says_what_there_is(tmp_path: Path) -> None:
    dicom(tmp_path / "IM0001")
    with pytest.raises(
        InputError,
        match=r"found none; left out 1: DICOM; segment its series with voxtile dicom, .*\(IM0001\)",
    ):
        find_cases(tmp_path, tmp_path / "masks", ["any"])


# Where IN and OUT lie -------------------------------------------------------------------------------------------


def masks_twice(inputs: Path, outputs: Path) -> list[str]:
    """The masks after two runs; the second finds all of the first's and nothing new."""
    for expected in ("done", "found"):
        with Segmenter(transport=transport()) as segmenter:
            result = segment_folder(segmenter, inputs, outputs)
        assert {outcome.status for outcome in result.outcomes} == {expected}
        assert result.exit_code == 0
    return sorted(str(path.relative_to(outputs)) for path in outputs.rglob("*.nii.gz"))


def test_out_may_lie_above_in(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(inputs.parent)
    for outputs in (Path("."), inputs.parent, Path("scans/..")):
        assert masks_twice(Path("scans"), outputs) == ["a.nii.gz", "scans/a.nii.gz"]
        (inputs.parent / "a.nii.gz").unlink()


def test_out_may_lie_inside_in_however_it_is_spelled(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(inputs)
    (inputs / "masks").mkdir()
    inputs.with_name("link").symlink_to(inputs / "masks")
    (inputs / "way").symlink_to(inputs / "masks")
    for outputs in (Path("masks"), inputs / "masks", Path("./masks/../masks"), inputs.with_name("link"), Path("way")):
        with Segmenter(transport=transport()) as segmenter:
            result = segment_folder(segmenter, Path("."), outputs)
        assert [outcome.case for outcome in result.outcomes] == ["a"]
        assert result.left_out == ()
        assert [path.name for path in (inputs / "masks").rglob("*.nii.gz")] == ["a.nii.gz"]


def test_out_is_another_folder_than_in(inputs: Path) -> None:
    inputs.with_name("link").symlink_to(inputs)
    for outputs in (inputs, inputs.with_name("link"), inputs / ".." / "scans"):
        with pytest.raises(InputError, match="another folder for masks"):
            find_cases(inputs, outputs, ["any"])


def test_no_mask_lies_where_the_next_run_takes_it_for_a_scan(inputs: Path) -> None:
    save_scan(inputs / "scans" / "b.nii.gz")  # its mask, in the folder above, would be scans/b.nii.gz
    with pytest.raises(OutputError, match="would lie among the scans"):
        find_cases(inputs, inputs.parent, ["any"])


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_no_mask_replaces_a_scan(inputs: Path, link: Callable[[Path, Path], None]) -> None:
    masks = inputs.with_name("masks")
    masks.mkdir()
    link(inputs / "a.nii.gz", masks / "a.nii.gz")
    with pytest.raises(OutputError, match=r"would replace the scan .*a\.nii\.gz"):
        find_cases(inputs, masks, ["any"])


# Files and cases ------------------------------------------------------------------------------------------------


def cases_of(inputs: Path, channels: int, *names: str) -> dict[str, list[str]]:
    (inputs / "a.nii.gz").unlink()
    for name in names:
        (inputs / name).touch()
    return {
        case.name: [file.name for file in case.files]
        for case in find_cases(inputs, inputs / "m", ["any", "other"][:channels]).cases
    }


def test_a_patients_number_stays_whatever_lies_beside(inputs: Path) -> None:
    assert list(cases_of(inputs, 1, "p_2023.nii")) == ["p_2023"]
    save_scan(inputs / "a.nii.gz")
    assert list(cases_of(inputs, 1, "p_2024.nii", "p_0001.nii")) == ["p_0001", "p_2023", "p_2024"]


def test_the_first_channels_number_is_no_part_of_the_name(inputs: Path) -> None:
    assert cases_of(inputs, 1, "p_0000.nii", "_0000.nii") == {"_0000": ["_0000.nii"], "p": ["p_0000.nii"]}


def test_channels_of_one_case_stay_together(inputs: Path) -> None:
    names = ["p_0000.nii", "p_0001.nii", "q_0001.nii", "r_2023.nii"]
    assert cases_of(inputs, 2, *names) == {
        "p": ["p_0000.nii", "p_0001.nii"],
        "q": ["q_0001.nii"],
        "r_2023": ["r_2023.nii"],
    }


@pytest.mark.parametrize(
    "names", [("p.nii", "p.nii.gz"), ("p.nii", "p.NII"), ("p_0000.nii", "p.nii.gz"), ("p_0001.nii", "p_0001.nii.gz")]
)
def test_two_cases_with_one_mask_are_refused(inputs: Path, names: tuple[str, str]) -> None:
    with pytest.raises(InputError, match=r"two cases would have this file") as caught:
        cases_of(inputs, 1, *names)
    assert all(name in str(caught.value) for name in names)


def test_a_scan_named_like_another_ones_output_is_told_apart_from_a_second_mask(inputs: Path) -> None:
    """Its mask and the other case's masks of regions would have one name, if these are asked for."""
    for name in ("p.nii.gz", "p.regions.nii.gz"):
        save_scan(inputs / name)
    masks = inputs.with_name("masks")
    assert {"p", "p.regions"} <= {case.name for case in find_cases(inputs, masks, ["any"]).cases}
    with pytest.raises(InputError, match=r"the file \.regions\.nii\.gz of .*p\.nii\.gz; the mask of .*p\.regions"):
        find_cases(inputs, masks, ["any"], [REGIONS])


def test_a_second_channel_is_not_segmented_by_a_model_of_one(inputs: Path) -> None:
    save_scan(inputs / "p_0000.nii")
    save_scan(inputs / "p_0001.nii")
    with Segmenter(transport=transport()) as segmenter:
        result = segment_folder(segmenter, inputs, inputs.with_name("masks"))
    assert [(outcome.case, outcome.status) for outcome in result.outcomes] == [("a", "done"), ("p", "failed")]
    assert "(_0000 any), found p_0000.nii, p_0001.nii" in result.outcomes[1].error
