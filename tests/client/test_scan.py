"""A scan in any form gives what its file gives. SimpleITK images and MetaTensors are in test_scan_oracle.py."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.support.phantoms import phantom_volume, saved
from tests.support.stored_scans import AFFINE, SHAPE, values, with_scaling
from voxtile.errors import InputError
from voxtile.io.scan import ScanInput, open_scan
from voxtile.io.writing import mask_image


class FileReference:
    """An os.PathLike that is no Path."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __fspath__(self) -> str:
        return str(self._path)


def test_every_form_gives_what_the_file_gives(tmp_path: Path) -> None:
    path = with_scaling(tmp_path / "scan.nii", values(), 2.5, 3)
    read, scaled = open_scan(path, ["T1"]), nib.load(path).get_fdata()
    forms: list[ScanInput] = [
        str(path),
        FileReference(path),
        [path],
        path.read_bytes(),
        gzip.compress(path.read_bytes()),
        nib.load(path),
        [nib.Nifti1Image(scaled, AFFINE)],
        (scaled, AFFINE),
        [(scaled, AFFINE.tolist())],
        open_scan((scaled, AFFINE), ["T1"]),
    ]
    for form in forms:
        volume = open_scan(form, ["T1"])
        np.testing.assert_array_equal(volume.data, read.data)
        np.testing.assert_allclose(volume.affine, read.affine)
        np.testing.assert_allclose(mask_image(np.zeros(SHAPE, np.uint8), volume).affine, AFFINE)


def test_channels_may_come_in_different_forms(tmp_path: Path) -> None:
    path = saved(tmp_path / "scan.nii.gz", values(), AFFINE)
    volume = open_scan([path, (values(), AFFINE), nib.Nifti1Image(values(), AFFINE)], ["a", "b", "c"])
    np.testing.assert_array_equal(volume.data, np.stack([values()] * 3))
    assert volume.names == (str(path), "image 2", "image 3")


def test_the_last_axis_of_an_array_holds_its_channels() -> None:
    both = np.stack([values(seed=1), values(seed=2)], -1)
    volume = open_scan((both, AFFINE), ["a", "b"])
    np.testing.assert_array_equal(volume.data, np.moveaxis(both, -1, 0))
    assert volume.channel_names == ("image 1, channel 1", "image 1, channel 2")


def test_a_volume_is_taken_as_it_is_where_its_channels_fit() -> None:
    volume = phantom_volume(channels=2)
    assert open_scan(volume, ["a", "b"]) is volume
    with pytest.raises(InputError, match=r"channel0: expected one channel \(T1\), found 2"):
        open_scan(volume, ["T1"])


def test_damaged_bytes_are_refused_in_one_line() -> None:
    for content, match in ((b"", "image 1: .*an empty file"), (b"\x1f\x8b" + bytes(30), "image 1: damaged gzip")):
        with pytest.raises(InputError, match=match):
            open_scan(content, ["T1"])


def test_an_array_without_an_affine_is_refused() -> None:
    with pytest.raises(InputError, match="expected an array with its affine"):
        open_scan(values(), ["T1"])  # type: ignore[arg-type]


def test_no_library_is_imported_for_forms_that_did_not_come_in(tmp_path: Path) -> None:
    path = saved(tmp_path / "scan.nii.gz", values(), AFFINE)
    code = (
        "import sys, nibabel; from voxtile.io.scan import open_scan; "
        "open_scan(sys.argv[1], ['T1']); open_scan(nibabel.load(sys.argv[1]), ['T1']); "
        "print({'torch', 'monai', 'SimpleITK'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_an_image_of_another_format_is_taken_with_its_affine() -> None:
    volume = open_scan(nib.MGHImage(values("f4"), AFFINE), ["T1"])
    np.testing.assert_array_equal(volume.data[0], values("f4"))
    np.testing.assert_allclose(mask_image(np.zeros(SHAPE, np.uint8), volume).affine, AFFINE, atol=1e-5)


def test_what_is_no_usable_image_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "scan.nii.gz", values(), AFFINE)
    lazy = nib.load(path)
    path.write_bytes(path.read_bytes()[:200])
    flat = nib.Nifti1Image(values(), AFFINE)
    flat.affine[:3, 2] = 0
    for image, match in (
        (object(), "expected a path, bytes of a NIfTI file, a nibabel or SimpleITK image.*found object"),
        (lazy, "scan.nii.gz: cannot be read"),
        (nib.Nifti1Image(values(), None), "affine"),
        (flat, "singular"),
        (nib.Nifti1Image(np.zeros((0, 3, 3), np.int16), AFFINE), "empty"),
        (nib.Nifti1Image(np.full(SHAPE, np.nan), AFFINE), "finite"),
    ):
        with pytest.raises(InputError, match=match):
            open_scan([image], ["T1"])
    with pytest.raises(InputError, match="4 × 4"):
        open_scan((values(), np.eye(3)), ["T1"])
