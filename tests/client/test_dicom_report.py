"""The structured report says the volumes and intensities of the mask, and the picture shows it as radiologists look."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest

from tests.support import dicom_findings as made
from tests.support import dicom_series as series
from voxtile.outputs.dicom.capture import capture_of
from voxtile.outputs.dicom.finding import Finding
from voxtile.outputs.dicom.measurements import report_of
from voxtile.outputs.dicom.seg import seg_of
from voxtile.outputs.dicom.write import write_object
from voxtile.outputs.preview import picture
from voxtile.outputs.statistics import statistics


def finding(modality: str = "CT", **geometry: Any) -> Finding:
    voxels, affine = made.scan(**geometry)
    return made.finding(series.slices(voxels - 200, affine, modality), voxels - 200, affine)


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_statistics_are_those_of_numpy(dtype: Any) -> None:
    voxels, _ = made.scan()
    data, labels = (voxels * 1.25 - 300).astype(dtype), made.labels_of(voxels)
    for value, found in statistics(data, labels, [1, 2, 3]).items():
        inside = data[labels == value].astype(np.float64)
        assert found.voxels == inside.size
        assert (found.minimum, found.maximum) == (inside.min(), inside.max())
        assert found.mean == pytest.approx(inside.mean())
        assert found.deviation == pytest.approx(inside.std())
    assert statistics(data, labels, [4])[4].voxels == 0


def test_a_report_says_volume_and_intensity_of_each_segment(tmp_path: Path) -> None:
    one = finding()
    seg = seg_of(one)
    write_object(report_of(one, seg), tmp_path / "sr.dcm")
    read = hd.sr.srread(tmp_path / "sr.dcm")
    groups = read.content.get_volumetric_roi_measurement_groups()
    labels, data = one.labels, one.volume.data[0]
    assert len(groups) == len(one.structures)
    for group, structure in zip(groups, one.structures, strict=True):
        segment = group.referenced_segment
        (number,) = (segment[0].ReferencedSOPSequence[0].ReferencedSegmentNumber,)
        assert number == structure.number
        assert segment[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == seg.SOPInstanceUID
        assert group.tracking_uid == seg.SegmentSequence[structure.number - 1].TrackingUID
        values = {(m.name.meaning, m.derivation.meaning if m.derivation else ""): m for m in group.get_measurements()}
        inside = data[labels == structure.value]
        volume = values.pop(("Volume", ""))
        assert (volume.unit.value, volume.value) == ("ml", pytest.approx(inside.size * one.volume.voxel_ml, rel=1e-5))
        if not inside.size:
            assert not values
            continue
        said = {derivation: value.value for (_, derivation), value in values.items()}
        assert said == pytest.approx(
            {
                "Mean": inside.mean(),
                "Minimum": inside.min(),
                "Maximum": inside.max(),
                "Standard Deviation": inside.std(),
            },
            rel=1e-5,
        )
        assert {m.unit.value for m in values.values()} == {"[hnsf'U]"}
    assert groups[1].finding_type.meaning == "Kidney"
    assert groups[1].finding_sites[0].laterality.meaning == "Left"


def test_dcmqi_reads_the_report(tmp_path: Path) -> None:
    one = finding("MR")
    write_object(report_of(one, seg_of(one)), tmp_path / "sr.dcm")
    program = Path(sys.executable).parent / "tid1500reader"
    command = [program, "--inputDICOM", tmp_path / "sr.dcm", "--outputMetadata", tmp_path / "sr.json"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    read = json.loads((tmp_path / "sr.json").read_text())
    assert [group["TrackingIdentifier"] for group in read["Measurements"]] == [s.name for s in one.structures]
    volumes = [float(group["measurementItems"][0]["value"]) for group in read["Measurements"]]
    assert volumes == pytest.approx(
        [np.count_nonzero(one.labels == s.value) * one.volume.voxel_ml for s in one.structures], rel=1e-5
    )
    units = {item["units"]["CodeValue"] for group in read["Measurements"] for item in group["measurementItems"][1:]}
    assert units == {"1"}  # an MR scanner's numbers have no unit


def test_a_scan_of_many_frames_in_one_object_is_one_piece_of_evidence() -> None:
    voxels, affine = made.scan()
    datasets = series.slices(voxels, affine)
    whole = made.enhanced(datasets)
    one = made.finding(made.Source((whole,), made.planes_of(whole, datasets)), voxels, affine)
    report = report_of(one, seg_of(one))
    named = {
        item.ReferencedSOPInstanceUID
        for study in report.CurrentRequestedProcedureEvidenceSequence
        for of_series in study.ReferencedSeriesSequence
        for item in of_series.ReferencedSOPSequence
    }
    assert whole.SOPInstanceUID in named


def test_the_picture_shows_the_right_side_on_the_left(tmp_path: Path) -> None:
    """Two blocks in colours of their own, on the patient's right and left: the right one is drawn left of the other."""
    voxels, affine = made.scan()
    labels = np.zeros(voxels.shape, np.uint8, "F")
    x = affine[0, 0] * np.arange(voxels.shape[0]) + affine[0, 3]
    labels[x > 8, 12:18] = 1
    labels[x < -8, 12:18] = 2
    one = made.finding(series.slices(voxels, affine), voxels, affine, labels, made.card_for(["right", "left"]))
    capture = capture_of(one)
    write_object(capture, tmp_path / "sc.dcm")
    pixels = pydicom.dcmread(tmp_path / "sc.dcm").pixel_array
    assert np.array_equal(pixels, picture(one.volume, labels, one.card.labels))
    axial = pixels[80:-80, -pixels.shape[1] // 4 :].astype(int)
    reddish = np.argwhere(axial[..., 0] - axial[..., 2] > 60)[:, 1].mean()
    bluish = np.argwhere(axial[..., 2] - axial[..., 0] > 30)[:, 1].mean()
    assert reddish < bluish
    assert capture.BurnedInAnnotation == "NO"
    assert not capture.PatientOrientation
