"""Where a header contradicts itself, what counts is what the model's own reader takes: nnU-Net's three and MONAI's."""

from __future__ import annotations

import gzip
import logging
import warnings
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from monai.transforms import LoadImage
from nibabel.eulerangles import euler2mat
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from numpy.typing import NDArray

from tests.support.odd_headers import AFFINE, NAN, VOXELS, content, written
from voxtile.chains.nnunet.reader_properties import reader_axes, reader_spacing
from voxtile.errors import InputError
from voxtile.io.geometry import MONAI, NIBABEL, REORIENTING, SIMPLEITK
from voxtile.io.scan import open_scan
from voxtile.io.writing import mask_image, write_image

NNUNET = {SIMPLEITK: SimpleITKIO, NIBABEL: NibabelIO, REORIENTING: NibabelIOWithReorient}
READERS = (*NNUNET, MONAI)
SAME = 1e-6
"""Share by which two readings of a float32 header may differ."""

TURNED = np.eye(4)
TURNED[:3, :3] = euler2mat(0.2, -0.1, 0.3) @ AFFINE[:3, :3]
LPS = np.diag([-1.0, -1, 1, 1]) @ AFFINE
SINGULAR = [1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 2, 0]

Read = tuple[NDArray[Any], NDArray[np.float64]]
"""The voxels as a reader gives them, and what it says of the grid: nnU-Net's spacing, or MONAI's affine."""


def theirs(path: Path, reader: str) -> Read:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if reader == MONAI:
            image = LoadImage(image_only=True, ensure_channel_first=True)(path)
            return image.numpy(), image.affine.numpy()
        data, properties = NNUNET[reader]().read_images([str(path)])
        return data, np.array(properties["spacing"])


def ours(path: Path, reader: str) -> Read:
    volume = open_scan(path, ["T1"], reader)
    if reader == MONAI:
        return volume.data, volume.affine
    axes = reader_axes(volume, reader)
    return axes.apply(volume.data), np.array(axes.reorder(reader_spacing(volume, reader)))


def assert_same(path: Path, reader: str) -> None:
    (data, place), (expected, expected_place) = ours(path, reader), theirs(path, reader)
    np.testing.assert_array_equal(data, expected)
    np.testing.assert_allclose(place, expected_place, rtol=SAME, atol=SAME)


CONTRADICTIONS: dict[str, dict[str, Any]] = {
    "sform of another spacing (ACDC)": {"srow": np.diag([-1.0, -1, 1, 1])[:3]},
    "sform of another spacing, qform without a code": {"srow": LPS[:3] * 2, "codes": [0, 1]},
    "pixdim of another spacing": {"pixdim": [1, 3, 3.5, 4]},
    "pixdim of another spacing, and axes that are turned": {"affine": LPS, "pixdim": [1, 3, 3.5, 4]},
    "pixdim 5 in 10,000 off": {"pixdim": [1, 1.0005, 1.5, 2]},
    "thickness 0": {"pixdim": [1, 1, 1.5, 0]},
    "thickness 0 in the qform alone": {"pixdim": [1, 1, 1.5, 0], "codes": [1, 0]},
    "a negative size": {"pixdim": [1, 1, -1.5, 2]},
    "a qfac of 5": {"pixdim": [5.0], "codes": [1, 0]},
    "a qfac of -1": {"pixdim": [-1.0], "codes": [1, 0]},
    "neither form": {"codes": [0, 0]},
    "forms in other places": {"affine": TURNED, "qoffset": [3.0, 2.0, 1.0]},
    "forms of other directions": {"srow": TURNED[:3]},
    "intercept without a slope": {"scl": [0.0, 7.0]},
    "intercept beside an infinite slope": {"scl": [float("inf"), -3.0]},
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("what", CONTRADICTIONS)
def test_what_counts_is_what_the_models_reader_takes(tmp_path: Path, what: str, reader: str) -> None:
    assert_same(written(tmp_path / "scan.nii", **CONTRADICTIONS[what]), reader)


UNUSABLE: dict[str, dict[str, Any]] = {
    "zero": {"srow": [0.0] * 12},
    "not finite": {"srow": [NAN] * 12},
    "infinite": {"srow": [float("inf"), 0, 0, 0]},
    "singular": {"srow": SINGULAR},
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("what", UNUSABLE)
def test_a_form_that_places_nothing_leaves_the_qform(tmp_path: Path, what: str, reader: str) -> None:
    path = written(tmp_path / "scan.nii", **UNUSABLE[what])
    volume = open_scan(path, ["T1"], reader)
    np.testing.assert_allclose(volume.affine, AFFINE, rtol=SAME)
    assert any(f"the sform is {what.replace('infinite', 'not finite')}" in warning for warning in volume.warnings)
    if reader != REORIENTING:  # nnU-Net's fails
        assert_same(path, reader)
    mask = mask_image((VOXELS > 50).astype(np.uint8), volume)
    write_image(mask, tmp_path / "mask.nii.gz")
    np.testing.assert_allclose(nib.load(tmp_path / "mask.nii.gz").affine, AFFINE, rtol=SAME)
    places = [SimpleITK.ReadImage(tmp_path / name).TransformIndexToPhysicalPoint((1, 2, 3)) for name in
              ("mask.nii.gz", *(["scan.nii"] if what != "not finite" else []))]  # fmt: skip
    np.testing.assert_allclose(places, np.broadcast_to((3.0, -8.0, 12.0), (len(places), 3)), rtol=SAME)


@pytest.mark.parametrize("reader", [SIMPLEITK, NIBABEL])
def test_a_form_that_places_nothing_alone_leaves_the_voxel_size(tmp_path: Path, reader: str) -> None:
    path = written(tmp_path / "scan.nii", srow=[0.0] * 12, codes=[0, 1])
    volume = open_scan(path, ["T1"], reader)
    np.testing.assert_allclose(volume.affine, nib.load(written(tmp_path / "none.nii", codes=[0, 0])).affine)
    assert "the voxel size (pixdim) alone counts" in volume.warnings[0]


def test_monais_reader_takes_the_qform_also_without_its_code(tmp_path: Path) -> None:
    assert_same(written(tmp_path / "scan.nii", srow=[0.0] * 12, codes=[0, 1]), MONAI)


@pytest.mark.parametrize("length", [1.0000002, 1.001, 1.6])
@pytest.mark.parametrize("reader", READERS)
def test_a_quaternion_that_is_too_long_is_normalised_as_itk_does(tmp_path: Path, length: float, reader: str) -> None:
    direction = np.array([0.48, 0.6, 0.64])
    path = written(tmp_path / "scan.nii", quatern=direction * length, codes=[1, 0])
    volume, image = open_scan(path, ["T1"], reader), SimpleITK.ReadImage(path)
    for index in ((0, 0, 0), (8, 0, 0), (0, 7, 6)):
        x, y, z = image.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose(volume.affine @ (*index, 1), (-x, -y, z, 1), atol=1e-4)
    assert "quaternion" in volume.warnings[0]
    mask = mask_image(volume.data[0] > 50, volume)  # nibabel could not read the scan's own form back
    np.testing.assert_allclose(mask.affine, volume.affine)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("fields", "match"),
    [({"quatern": [NAN, 0, 0], "codes": [1, 0]}, "neither: the qform's fields are not finite"),
     ({"pixdim": [1, 1, NAN, 2], "codes": [1, 0]}, "neither"), ({"pixdim": [1, 1, NAN, 2], "codes": [0, 0]}, "pixdim"),
     ({"quatern": [NAN, 0, 0], "srow": [0.0] * 12}, "neither"), ({"dim": [8]}, "8 axes"), ({"dim": [-3]}, "axes"),
     ({"pixdim": [1, 1, 1e6, 2]}, "spacing"), ({"pixdim": [1, float("inf"), 1, 2], "codes": [1, 0]}, "neither")],
)  # fmt: skip
def test_what_no_form_can_place_is_refused(tmp_path: Path, fields: dict[str, Any], match: str, reader: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        open_scan(written(tmp_path / "scan.nii", **fields), ["T1"], reader)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("reader", [SIMPLEITK, NIBABEL, REORIENTING])
def test_a_size_that_counts_must_be_a_number(tmp_path: Path, reader: str) -> None:
    path = written(tmp_path / "scan.nii", pixdim=[1, 1, NAN, 2])
    with pytest.raises(InputError, match="pixdim, found 1 × nan × 2"):
        open_scan(path, ["T1"], reader)
    assert_same(path, MONAI)


@pytest.mark.parametrize("reader", READERS)
def test_a_broken_qform_beside_a_sound_sform_does_not_count(tmp_path: Path, reader: str) -> None:
    path = written(tmp_path / "scan.nii", quatern=[NAN, 0.0, 0.0])
    assert_same(path, reader)
    assert "the qform cannot be used" in open_scan(path, ["T1"], reader).warnings[0]


# Units -----------------------------------------------------------------------------------------------------

METRES = np.diag([1e-3, 1e-3, 1e-3, 1.0]) @ AFFINE
MICROMETRES = np.diag([100.0, 100.0, 100.0, 1.0]) @ AFFINE


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("units", "affine"), [(1, METRES), (3, MICROMETRES), (1 | 8, METRES), (0, AFFINE), (5, AFFINE)]
)
def test_a_unit_counts_where_it_counts_for_the_reader(
    tmp_path: Path, units: int, affine: NDArray[np.float64], reader: str
) -> None:
    path = written(tmp_path / "scan.nii", VOXELS, affine, units=units)
    assert_same(path, reader)
    volume = open_scan(path, ["T1"], reader)
    assert volume.voxel_ml == pytest.approx({3: 3e-6}.get(units, 3e-3), rel=1e-5)
    assert any("xyzt_units" in warning for warning in volume.warnings) == (units & 7 in (1, 3))
    if reader == SIMPLEITK:
        image = SimpleITK.ReadImage(path)
        x, y, z = image.TransformIndexToPhysicalPoint((3, 2, 1))
        np.testing.assert_allclose(volume.affine @ (3, 2, 1, 1), (-x, -y, z, 1), rtol=1e-5)


def test_a_mask_repeats_the_scans_own_unit(tmp_path: Path) -> None:
    path = written(tmp_path / "scan.nii", VOXELS, METRES, units=1)
    write_image(mask_image(VOXELS > 50, open_scan(path, ["T1"], SIMPLEITK)), tmp_path / "mask.nii")
    scan, mask = SimpleITK.ReadImage(path), SimpleITK.ReadImage(tmp_path / "mask.nii")
    for what in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(mask, what)(), getattr(scan, what)())


# Axes, and what stands around them -------------------------------------------------------------------------


def test_two_axes_are_one_slice_as_nnunets_reader_says(tmp_path: Path) -> None:
    path = written(tmp_path / "flat.nii", VOXELS[:, :, 3])
    assert_same(path, SIMPLEITK)
    for reader in (NIBABEL, REORIENTING, MONAI):
        volume = open_scan(path, ["T1"], reader)
        assert (volume.shape, volume.header_spacing) == ((9, 8, 1), (1.0, 1.5, 2.0))
        assert "two axes" in volume.warnings[0]
    labels = VOXELS[:, :, 3:4] > 50
    write_image(mask_image(labels, volume), tmp_path / "mask.nii.gz")
    scan, mask = SimpleITK.ReadImage(path), SimpleITK.ReadImage(tmp_path / "mask.nii.gz")
    assert (mask.GetSize(), mask.GetOrigin(), mask.GetSpacing()) == (
        scan.GetSize(),
        scan.GetOrigin(),
        scan.GetSpacing(),
    )
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(mask).T, labels[:, :, 0])


@pytest.mark.parametrize("reader", READERS)
def test_a_single_slice_and_trailing_axes_are_read(tmp_path: Path, reader: str) -> None:
    assert_same(written(tmp_path / "slice.nii", VOXELS[:, :1]), reader)
    path = written(tmp_path / "series.nii", VOXELS[..., None])
    np.testing.assert_array_equal(open_scan(path, ["T1"], reader).data[0], VOXELS)
    if reader in (MONAI, SIMPLEITK):
        assert_same(path, reader)


@pytest.mark.parametrize("more", [b"\n", b"garbage", bytes(7), bytes(512) + b"x", b"\x1f\x8bno"])
def test_bytes_after_a_gzip_stream_are_left_out(tmp_path: Path, more: bytes) -> None:
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(gzip.compress(content()[:500]) + gzip.compress(content()[500:]) + more)
    if more == b"\x1f\x8bno":  # the beginning of another member
        with pytest.raises(InputError, match="gzip"):
            open_scan(path, ["T1"])
        return
    for reader in (SIMPLEITK, NIBABEL):
        assert_same(path, reader)
    assert [("other bytes" in one) for one in open_scan(path, ["T1"]).warnings] == ([True] if more.strip(b"\0") else [])


@pytest.mark.parametrize("reader", READERS)
def test_a_sound_header_says_nothing_odd(tmp_path: Path, reader: str, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path / "scan.nii", VOXELS, TURNED)
    assert_same(path, reader)
    assert open_scan(path, ["T1"], reader).warnings == ()
    assert not [record for record in caplog.records if record.name.startswith("voxtile")]


def test_a_warning_names_the_file_in_the_log_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path / "jane_doe.nii", pixdim=[1, 3, 3, 3])
    with caplog.at_level(logging.WARNING):
        volume = open_scan(path, ["T1"], NIBABEL)
    assert volume.warnings[0] == "pixdim says 3 × 3 × 3, the sform 1 × 1.5 × 2; 3 × 3 × 3 counts, as in NibabelIO"
    assert "jane_doe.nii: pixdim says" in caplog.text


@pytest.mark.parametrize(
    ("fields", "reader", "words"),
    [({"srow": np.diag([-1.0, -1, 1, 1])[:3]}, MONAI, "so the qform counts, as in NibabelReader"),
     ({"pixdim": [1, 1.0005, 1.5, 2], "codes": [0, 1], "qoffset": [9.0, 9.0, 9.0]}, MONAI, "the qform counts"),
     ({"srow": np.diag([-1.0, -1, 1, 1])[:3]}, NIBABEL, "the sform counts"),
     ({"qoffset": [0.0, 0.0, 0.0]}, REORIENTING, "the sform counts"),
     ({"qoffset": [0.0, 0.0, 0.0], "codes": [0, 1]}, REORIENTING, ""), ({"scl": [0.0, 3.0]}, MONAI, "leaves out"),
     ({"scl": [0.0, 3.0]}, SIMPLEITK, "adds"), ({"codes": [0, 0]}, MONAI, "direction of the axes is nibabel's guess"),
     ({"pixdim": [1, 1, 1.5, 0]}, SIMPLEITK, "setting 0 dims to 1"), ({"vox_offset": 352.25}, MONAI, "")],
)  # fmt: skip
def test_each_contradiction_is_told_with_what_counted(
    tmp_path: Path, fields: dict[str, Any], reader: str, words: str
) -> None:
    warnings = open_scan(written(tmp_path / "scan.nii", **fields), ["T1"], reader).warnings
    assert any(words in one for one in warnings) if words else warnings == ()


def test_channels_of_other_spacings_are_refused(tmp_path: Path) -> None:
    one, other = written(tmp_path / "a.nii"), written(tmp_path / "b.nii", pixdim=[1, 3, 3, 3], codes=[0, 1])
    with pytest.raises(InputError, match=r"b.nii: expected the spacing of .*a.nii"):
        open_scan([one, other], ["a", "b"], SIMPLEITK)


def test_an_image_from_a_file_is_its_file(tmp_path: Path) -> None:
    path = written(tmp_path / "scan.nii", **CONTRADICTIONS["sform of another spacing (ACDC)"])
    for reader in READERS:
        mine, expected = open_scan(nib.load(path), ["T1"], reader), open_scan(path, ["T1"], reader)
        np.testing.assert_array_equal(mine.affine, expected.affine)
        assert (mine.header_spacing, mine.warnings) == (expected.header_spacing, expected.warnings)
