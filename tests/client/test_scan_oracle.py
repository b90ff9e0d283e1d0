"""SimpleITK images and MetaTensors as they are: the same scan as from the file, and the mask on their own grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImage, Orientation
from numpy.typing import NDArray

from tests.support.phantoms import affine_of, sampled, saved
from voxtile.errors import InputError
from voxtile.io.orientation import LPS_TO_RAS
from voxtile.io.scan import open_scan
from voxtile.io.writing import mask_image, write_image

SHAPE, SPACING = (12, 15, 11), (2.0, 1.5, 1.7)
OBLIQUE = (14.0, -27.0, 33.0)
HEADER = 1e-5
"""Of a coordinate: a header holds its affine in float32."""
THRESHOLD = 450
"""Values of the phantom above it are the mask: an egg with a nose and a lesion, like no other part of the scan."""

CODES = ["RAS", "LPS", "SAR", "PIL"]
pytestmark = pytest.mark.parametrize("codes", CODES)


@pytest.fixture
def scan(codes: str, tmp_path: Path) -> Path:
    affine = affine_of(SHAPE, SPACING, codes, OBLIQUE)
    path: Path = saved(tmp_path / "scan.nii.gz", np.rint(sampled(SHAPE, affine)).astype(np.int16), affine)
    return path


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=HEADER, atol=HEADER * 50)


def same_place(image: Any, mask: Any) -> None:
    """Both SimpleITK images have the same grid, and every voxel above the threshold is in the mask."""
    for what in ("GetOrigin", "GetSpacing", "GetDirection"):
        close(getattr(mask, what)(), getattr(image, what)())
    inside = SimpleITK.GetArrayFromImage(image) > THRESHOLD
    assert 0.02 < inside.mean() < 0.5
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(mask), inside)


def labels_of(data: NDArray[Any]) -> NDArray[np.uint8]:
    return (data > THRESHOLD).astype(np.uint8)


# SimpleITK -------------------------------------------------------------------------------------------------


def test_a_simpleitk_image_is_the_scan_of_its_file(scan: Path) -> None:
    volume, expected = open_scan(SimpleITK.ReadImage(scan), ["T1"]), open_scan(scan, ["T1"])
    np.testing.assert_array_equal(volume.data, expected.data)
    assert volume.data.dtype == expected.data.dtype
    close(volume.affine, expected.affine)


def test_the_mask_of_a_simpleitk_image_is_a_nibabel_image_on_its_grid(scan: Path, tmp_path: Path) -> None:
    image = SimpleITK.ReadImage(scan)
    volume = open_scan(image, ["T1"])
    mask = mask_image(labels_of(volume.data[0]), volume)
    assert isinstance(mask, nib.Nifti1Image)
    write_image(mask, tmp_path / "mask.nii.gz")
    same_place(image, SimpleITK.ReadImage(tmp_path / "mask.nii.gz"))


def test_the_scan_outlives_its_simpleitk_image(scan: Path) -> None:
    image = SimpleITK.ReadImage(scan)
    volume = open_scan(image, ["T1"])
    before = volume.data.copy()
    image.SetPixel((1, 2, 3), 30_000)
    np.testing.assert_array_equal(volume.data, before)


@pytest.mark.parametrize("join", [SimpleITK.Compose, SimpleITK.JoinSeries])
def test_components_and_the_fourth_axis_are_channels(scan: Path, join: Any) -> None:
    image = SimpleITK.ReadImage(scan)
    volume = open_scan(join([image, image + 5]), ["a", "b"])
    np.testing.assert_array_equal(volume.data[0], SimpleITK.GetArrayFromImage(image).T)
    np.testing.assert_array_equal(volume.data[1], volume.data[0] + 5)
    close(volume.affine, open_scan(scan, ["T1"]).affine)


def test_simpleitk_images_without_a_volume_are_refused(scan: Path) -> None:
    image = SimpleITK.ReadImage(scan)
    complex_image = SimpleITK.RealAndImaginaryToComplex(*[SimpleITK.Cast(image, SimpleITK.sitkFloat32)] * 2)
    for bad, match in ((image[:, :, 3], "3D scan, found 2 axes"), (complex_image, "complex64")):
        with pytest.raises(InputError, match=match):
            open_scan(bad, ["T1"])


# MONAI -----------------------------------------------------------------------------------------------------


def loaded(scan: Path) -> MetaTensor:
    """[1, i, j, k] as MONAI's own transforms load it."""
    tensor: MetaTensor = LoadImage(image_only=True, ensure_channel_first=True)(scan)
    return tensor


def test_a_meta_tensor_is_the_scan_of_its_file(scan: Path) -> None:
    expected = open_scan(scan, ["T1"])
    tensor = loaded(scan).requires_grad_()
    for form in (tensor, tensor[0]):
        volume = open_scan(form, ["T1"])
        np.testing.assert_array_equal(volume.data, expected.data)
        close(volume.affine, expected.affine)


@pytest.mark.parametrize("wanted", ["RAS", "ASL"])
def test_the_mask_of_a_turned_meta_tensor_is_on_its_own_grid(scan: Path, tmp_path: Path, wanted: str) -> None:
    turned = Orientation(wanted, labels=(("L", "R"), ("P", "A"), ("I", "S")))(loaded(scan))
    volume = open_scan(turned, ["T1"])
    mask = mask_image(labels_of(volume.data[0]), volume)
    close(mask.affine, turned.affine.numpy())
    np.testing.assert_array_equal(np.asarray(mask.dataobj), labels_of(turned[0].numpy()))
    assert nib.aff2axcodes(mask.affine) == tuple(wanted)


def test_a_meta_tensor_in_lps_lies_where_the_file_does(scan: Path) -> None:
    tensor = loaded(scan)
    moved = MetaTensor(tensor.as_tensor(), affine=torch.as_tensor(LPS_TO_RAS) @ tensor.affine, meta={"space": "LPS"})
    close(open_scan(moved, ["T1"]).affine, open_scan(scan, ["T1"]).affine)


def test_the_first_axis_of_a_meta_tensor_holds_its_channels(scan: Path) -> None:
    tensor = loaded(scan)
    both = torch.cat([tensor, tensor + 5])
    volume = open_scan(both, ["a", "b"])
    np.testing.assert_array_equal(volume.data, both.numpy())
    np.testing.assert_array_equal(open_scan([tensor, tensor + 5], ["a", "b"]).data, both.numpy())


def test_meta_tensors_that_are_no_scan_are_refused(scan: Path) -> None:
    tensor = loaded(scan)
    for bad, match in (
        (tensor[None], "found 5 axes"),
        (tensor.to(torch.bfloat16), "convert it to float32"),
        (torch.cat([tensor, tensor]), "4D without a channel meaning"),
        (MetaTensor(tensor.as_tensor(), affine=torch.eye(3)), "4 × 4"),
    ):
        with pytest.raises(InputError, match=match):
            open_scan(bad, ["T1"])
