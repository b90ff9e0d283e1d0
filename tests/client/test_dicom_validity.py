"""dciodvfy, which knows DICOM's own tables, finds no error in what is written, whatever the scan's headers lack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support import dicom_findings as made
from tests.support import dicom_series as series
from voxtile.io.dicom.source import Source
from voxtile.outputs.dicom.finding import Finding
from voxtile.outputs.dicom.write import KINDS, write_objects

pytestmark = pytest.mark.system

UNKNOWN_CLASS = "Information Object Not found"
BACKGROUND = "SegmentNumber not monotonically increasing"
"""What dciodvfy of 2022 says of LABELMAP, a class of 2024 whose background has the number 0."""

BARE = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
        "AccessionNumber", "ReferringPhysicianName", "PositionReferenceIndicator", "FrameOfReferenceUID")  # fmt: skip


def ct() -> Finding:
    voxels, affine = made.scan(angles=(3.0, 4.0, 5.0))
    return made.finding(series.slices(voxels, affine, BodyPartExamined="HEAD"), voxels, affine)


def mr() -> Finding:
    voxels, affine = made.scan(codes="LSA")
    return made.finding(series.slices(voxels, affine, "MR"), voxels, affine)


def knee() -> Finding:
    """A body part that is a pair, which asks for a side in some objects."""
    voxels, affine = made.scan()
    return made.finding(series.slices(voxels, affine, BodyPartExamined="KNEE"), voxels, affine)


def bare() -> Finding:
    voxels, affine = made.scan()
    return made.finding(series.slices(voxels, affine, **dict.fromkeys(BARE)), voxels, affine)


def many_frames() -> Finding:
    voxels, affine = made.scan()
    datasets = series.slices(voxels, affine)
    whole = made.enhanced(datasets)
    return made.finding(Source((whole,), made.planes_of(whole, datasets)), voxels, affine)


def empty() -> Finding:
    voxels, affine = made.scan()
    return made.finding(series.slices(voxels, affine), voxels, affine, made.labels_of(voxels) * 0)


def odd_names() -> Finding:
    voxels, affine = made.scan()
    names = ["lé\\ber" + "x" * 80, "Niere\tlinks", "腎臓", {"name": "b", "value": 4, "code": made.OWN_CODE}]
    return made.finding(series.slices(voxels, affine), voxels, affine, card=made.card_for(names))


@pytest.mark.parametrize("make", [ct, mr, knee, bare, many_frames, empty, odd_names])
def test_every_object_is_valid(make: Any, tmp_path: Path) -> None:
    found = make()
    files = {kind: tmp_path / f"{kind}.dcm" for kind in KINDS}
    assert not write_objects(found, files)
    assert {kind: made.dciodvfy(file) for kind, file in files.items()} == {kind: [] for kind in KINDS}
    write_objects(found, {"seg": files["seg"]}, "labelmap")
    errors = made.dciodvfy(files["seg"])
    assert [line for line in errors if UNKNOWN_CLASS not in line and BACKGROUND not in line] == []


def test_what_is_wrong_is_found(tmp_path: Path) -> None:
    """The check can fail."""
    found = ct()
    found.frames.first.StudyInstanceUID = ""
    write_objects(found, {"seg": tmp_path / "seg.dcm"})
    assert made.dciodvfy(tmp_path / "seg.dcm")
