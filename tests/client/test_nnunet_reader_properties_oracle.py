"""What we say of a scan is what nnU-Net's own readers say of it, for each reader and any orientation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.eulerangles import euler2mat
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from voxtile.chains.nnunet.reader_properties import reader_properties
from voxtile.io.scan import open_scan

READERS = {"SimpleITKIO": SimpleITKIO, "NibabelIO": NibabelIO, "NibabelIOWithReorient": NibabelIOWithReorient}
HEADER = 1e-5
"""A header's quaternion is float32."""


@pytest.fixture(params=["RAS", "LPS", "PIR", "oblique"])
def scan(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    values = np.random.default_rng(1).integers(0, 100, (5, 6, 7)).astype(np.int16)
    affine = np.diag([0.8, 1.1, 2.5, 1.0])
    affine[:3, 3] = (-20.5, 31.0, 7.25)
    if request.param == "oblique":
        affine[:3, :3] = euler2mat(0.2, -0.1, 0.3) @ affine[:3, :3]
    image = nib.Nifti1Image(values, affine)
    if request.param in ("LPS", "PIR"):
        wanted = nib.orientations.axcodes2ornt(request.param)
        image = image.as_reoriented(nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), wanted))
    image.set_sform(image.affine, 1)
    image.set_qform(image.affine, 1)
    nib.save(image, tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


def assert_alike(mine: Any, theirs: Any) -> None:
    if isinstance(theirs, dict):
        assert sorted(mine) == sorted(theirs)
        for key in theirs:
            assert_alike(mine[key], theirs[key])
    else:
        assert type(mine) is type(theirs)
        np.testing.assert_allclose(mine, theirs, atol=HEADER)


@pytest.mark.parametrize("reader", READERS)
def test_properties_are_the_readers_own(reader: str, scan: Path) -> None:
    _, theirs = READERS[reader]().read_images([str(scan)])
    volume = open_scan([scan], ["T1"])
    mine = reader_properties(volume, reader)
    assert_alike(mine, {key: value for key, value in theirs.items() if key != "spacing"})


def test_a_plan_that_names_no_reader_is_simpleitks(scan: Path) -> None:
    volume = open_scan([scan], ["T1"])
    assert list(reader_properties(volume, "")) == ["sitk_stuff"]
