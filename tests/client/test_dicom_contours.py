"""Outlines enclose exactly what the mask holds, and an RTSTRUCT lays them where the scan's frames lie."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import find_contours

from tests.support import dicom_findings as made
from tests.support import dicom_series as series
from voxtile.io.dicom.source import Source
from voxtile.outputs.dicom.contours import structure_set_of
from voxtile.outputs.dicom.outlines import outlines
from voxtile.outputs.dicom.write import write_object

SHORTEST = 0.97
LONGEST = 1.03
"""What an outline's area may be of the mask's: more is lost on a rib by outlines through the middles of pixels."""


def area(points: NDArray[np.float64]) -> float:
    x, y = points.T
    return abs(float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y))) / 2


def filled(points: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """[i, j] whether the middle of each pixel lies inside a closed outline, by the even-odd rule."""
    x, y = np.indices(shape)
    inside = np.zeros(shape, bool)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        if y0 != y1:
            crosses = (y0 > y) != (y1 > y)
            inside ^= crosses & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return inside


@settings(max_examples=150, deadline=None)
@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)))
def test_outlines_enclose_the_mask_and_nothing_else(mask: NDArray[np.bool_]) -> None:
    """A reader that fills them gets the mask back; each part has one outline, whatever holes and islands there are."""
    found = outlines(mask)
    assert len(found) == ndimage.label(mask)[1]
    assert sum(map(area, found)) == pytest.approx(mask.sum())
    again = np.zeros(mask.shape, int)
    for points in found:
        again += filled(points, mask.shape)
    assert np.array_equal(again, mask)
    for points in found:
        steps = np.roll(points, -1, axis=0) - points
        assert ((steps == 0).sum(axis=1) == 1).all()  # along edges, and no point twice in a row


def test_a_pixel_reaches_from_edge_to_edge() -> None:
    (points,) = outlines(np.array([[False, False], [False, True]]))
    assert {tuple(point) for point in points.tolist()} == {(0.5, 0.5), (1.5, 0.5), (1.5, 1.5), (0.5, 1.5)}


def test_a_hole_in_a_hole() -> None:
    mask = np.ones((11, 11), bool)
    mask[1:10, 1:10] = False
    mask[3:8, 3:8] = True
    mask[4:7, 4:7] = False
    mask[5, 5] = True
    assert sorted(map(area, outlines(mask))) == [1.0, 16.0, 40.0]


@pytest.mark.parametrize("thickness", [1, 2, 3, 5])
def test_the_area_of_a_rib_is_right(thickness: int) -> None:
    """An arc as a slice cuts a rib: outlines at 0.5 between pixels lose a part of the thinnest, ours lose none."""
    y, x = np.indices((120, 120))
    rib = (abs(np.hypot(y - 60, x - 60) - 45) < thickness / 2) & (y < 50)
    ours = sum(map(area, outlines(rib))) / rib.sum()
    assert SHORTEST <= ours <= LONGEST
    between = sum(map(area, find_contours(np.pad(rib, 1).astype(float), 0.5))) / rib.sum()
    assert abs(ours - 1) <= abs(between - 1)


def contours(structure_set: Any, number: int) -> list[tuple[str, NDArray[np.float64]]]:
    """Each outline of a structure: the object that it lies on, and its points [n, 3] in LPS."""
    item = next(one for one in structure_set.ROIContourSequence if one.ReferencedROINumber == number)
    return [
        (one.ContourImageSequence[0].ReferencedSOPInstanceUID, np.array(one.ContourData, float).reshape(-1, 3))
        for one in item.get("ContourSequence", ())
    ]


@pytest.mark.parametrize("codes", ["LPS", "RAI", "LSA", "PSL"])
def test_outlines_lie_on_the_frames(codes: str, tmp_path: Path) -> None:
    """Read back by the scan's own geometry, they give the mask: each on its frame, on the right side."""
    voxels, affine = made.scan(codes=codes, angles=(9.0, -4.0, 17.0))
    datasets = series.slices(voxels, affine)
    finding = made.finding(datasets, voxels, affine)
    write_object(structure_set_of(finding), tmp_path / "rt.dcm")
    read = pydicom.dcmread(tmp_path / "rt.dcm")
    to_voxels = np.linalg.inv(series.TO_LPS @ affine)
    of_uid = {one.SOPInstanceUID: k for k, one in enumerate(datasets)}
    for structure in finding.structures:
        again = np.zeros(voxels.shape, int)
        for uid, points in contours(read, structure.number):
            voxel = points @ to_voxels[:3, :3].T + to_voxels[:3, 3]
            k = of_uid[uid]
            assert np.allclose(voxel[:, 2], k, atol=0.01)
            assert np.allclose(voxel[:, :2] % 1, 0.5, atol=0.01)  # the edges of pixels
            again[:, :, k] += filled(np.rint(2 * voxel[:, :2]) / 2, voxels.shape[:2])
        assert np.array_equal(again > 0, made.labels_of(voxels) == structure.value)
        assert again.max() <= 1


def test_every_structure_is_a_region() -> None:
    """Also one that was not found, which has no outline."""
    voxels, affine = made.scan()
    finding = made.finding(series.slices(voxels, affine), voxels, affine)
    read = structure_set_of(finding)
    assert [one.ROIName for one in read.StructureSetROISequence] == [one.name for one in finding.structures]
    assert [list(one.ROIDisplayColor) for one in read.ROIContourSequence] == [list(o.rgb) for o in finding.structures]
    assert "ContourSequence" not in read.ROIContourSequence[3]
    kind = read.RTROIObservationsSequence[1].RTROIIdentificationCodeSequence[0]
    assert (kind.CodeMeaning, kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning) == ("Kidney", "Left")
    (frame,) = read.ReferencedFrameOfReferenceSequence
    assert frame.FrameOfReferenceUID == finding.frames.first.FrameOfReferenceUID


def test_a_long_outline_is_whole(tmp_path: Path) -> None:
    """Longer than the 65,534 bytes that explicit VR has room for."""
    voxels, affine = made.scan((151, 151, 1), spacing=(1.0, 1.0, 3.0))
    labels = np.zeros(voxels.shape, np.uint8, "F")
    labels[::2] = labels[:, 0] = 1  # a comb
    finding = made.finding(series.slices(voxels, affine), voxels, affine, labels)
    rough = np.zeros(voxels.shape, np.uint8, "F")
    rough[:, ::2] = 1
    rough[::3, :] = 1
    write_object(structure_set_of(made.finding(series.slices(voxels, affine), voxels, affine, rough)), tmp_path / "rt")
    ((_, points),) = contours(pydicom.dcmread(tmp_path / "rt"), 1)
    assert points.size * 8 > 65_534
    assert area(points[:, :2]) == pytest.approx(rough.sum())
    assert structure_set_of(finding).file_meta.TransferSyntaxUID == "1.2.840.10008.1.2"


def test_frames_of_one_object_are_named_by_their_number() -> None:
    voxels, affine = made.scan()
    datasets = series.slices(voxels, affine)
    whole = made.enhanced(datasets)
    planes = made.planes_of(whole, datasets)
    finding = made.finding(Source((whole,), planes), voxels, affine)
    read = structure_set_of(finding)
    for item in read.ROIContourSequence[0].ContourSequence:
        place = np.array(item.ContourData, float).reshape(-1, 3)[0, 2]
        named = item.ContourImageSequence[0].ReferencedFrameNumber
        frame = whole.PerFrameFunctionalGroupsSequence[named - 1]
        assert frame.PlanePositionSequence[0].ImagePositionPatient[2] == pytest.approx(place)


def test_each_frame_is_looked_at_once_however_many_structures_there_are() -> None:
    voxels, affine = made.scan()
    finding = made.finding(series.slices(voxels, affine), voxels, affine)
    looked: list[int] = []

    class Counted:
        def __getitem__(self, place: tuple[Any, Any, int]) -> NDArray[Any]:
            looked.append(place[2])
            return np.asarray(finding.numbers[place])

    found = structure_set_of(replace(finding, numbers=Counted()))
    assert looked == list(range(made.SHAPE[2]))
    contours = {one.ReferencedROINumber: one.get("ContourSequence") for one in found.ROIContourSequence}
    assert {number for number, sequence in contours.items() if sequence} == {1, 2, 3}
