"""Scans of other formats reach a model as its own reader gives them: nnU-Net's and MONAI's, run as they are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from monai.data.image_reader import NibabelReader
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

from tests.support.phantoms import affine_of
from tests.support.stored_formats import WRITERS
from tests.support.stored_scans import SHAPE, values
from voxtile.io.geometry import MONAI, SIMPLEITK
from voxtile.io.given import Given
from voxtile.io.scan import open_scan

PLACES = (
    affine_of(SHAPE, (0.7, 0.9, 3.1), "LPI", (20.0, -11.0, 33.0)),
    affine_of(SHAPE, (0.703125, 1 / 3, 5.0), "SAR", (2.0, 1.0, -3.0)),
)


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("name", ["a.nrrd", "b.nrrd", "a.nhdr", "a.mha", "b.mhd", "a.hdr"])
def test_nnunets_simpleitkio(tmp_path: Path, name: str, place: int) -> None:
    """The spacing to the bit: nnU-Net rounds sizes of grids by it."""
    WRITERS[name](tmp_path / name, values("i2"), PLACES[place])
    expected, properties = SimpleITKIO().read_images([str(tmp_path / name)])
    volume = open_scan([tmp_path / name], ["CT"], SIMPLEITK)
    np.testing.assert_array_equal(volume.data[0].T, expected[0])
    found = np.array(volume.header_spacing[::-1])
    exact = "nrrd" not in name and "nhdr" not in name  # lengths of vectors, which depend on the order of a sum
    np.testing.assert_allclose(found, properties["spacing"], rtol=0 if exact else 4e-16, atol=0)


@pytest.mark.parametrize("name", ["a.mgz", "a.hdr", "a.nii.bz2"])
def test_monais_nibabelreader(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, values("i2"), PLACES[0])
    reader = NibabelReader(mmap=False)
    image = reader.read(str(tmp_path / name))
    expected, meta = reader.get_data(image)
    volume = open_scan([tmp_path / name], ["CT"], MONAI)
    np.testing.assert_array_equal(volume.data[0], expected)
    np.testing.assert_array_equal(volume.affine, meta["affine"])


def test_nnunets_tiff3dio(tmp_path: Path) -> None:
    path = tmp_path / "case_0000.tif"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values("u2").T), str(path), useCompression=True)
    (tmp_path / "case.json").write_text(json.dumps({"spacing": [3.0, 0.9, 0.7]}))
    expected, properties = Tiff3DIO().read_images([str(path)])
    volume = open_scan([path], ["CT"], SIMPLEITK, given=Given(orientation="LPS"))
    np.testing.assert_array_equal(volume.data[0].T, expected[0])
    assert list(volume.header_spacing[::-1]) == properties["spacing"]
