"""Every file format gives the voxels and the place that its own library gives, and takes a mask to the same place."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray

from tests.support.phantoms import affine_of
from tests.support.stored_formats import WRITERS, read_back
from tests.support.stored_scans import SHAPE, refused, values
from voxtile.errors import InputError
from voxtile.io.formats.all import FORMATS, MASK_SUFFIXES, SUFFIXES, all_files, files_to_write
from voxtile.io.scan import open_scan
from voxtile.io.writing import mask_image, write_image

PLACES: dict[str, NDArray[np.float64]] = {
    "as RAS": affine_of(SHAPE, (1.0, 1.5, 2.0)),
    "oblique": affine_of(SHAPE, (0.7, 0.9, 3.1), "LPI", (20.0, -11.0, 33.0)),
    "left-handed": affine_of(SHAPE, (0.7, 0.9, 3.1), "SLA", (4.0, 8.0, -15.0)),
    "reversed": affine_of(SHAPE, (1.3, 1.3, 0.4), "LPS"),
}
SAME = 1e-5
"""How far the affine of a format that stores float32 may lie from another: header rounding, in shares of a voxel."""


def written(folder: Path, name: str, affine: NDArray[np.float64], data: NDArray[Any] | None = None) -> Path:
    path = folder / name
    WRITERS[name](path, values("i2") if data is None else data, affine)
    return path


def mask() -> NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 5, SHAPE).astype(np.uint8)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", WRITERS)
def test_a_scan_is_what_its_own_library_reads(tmp_path: Path, name: str, place: str) -> None:
    path = written(tmp_path, name, PLACES[place])
    volume = open_scan([path], ["T1"])
    expected, affine = read_back(path)
    np.testing.assert_array_equal(volume.data[0], expected)
    np.testing.assert_array_equal(expected, values("i2"))
    np.testing.assert_allclose(volume.affine, affine, rtol=0, atol=1e-12)
    np.testing.assert_allclose(volume.affine, PLACES[place], rtol=0, atol=SAME)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (name, dtype)
        for name in WRITERS
        for dtype in ("u1", "i2", "u2", "i4", "f4", "f8")
        if not (name.startswith("a.mg") and dtype == "f8")  # which MGH does not have
    ],
)
def test_every_type_of_voxel_is_read(tmp_path: Path, name: str, dtype: str) -> None:
    path = written(tmp_path, name, PLACES["oblique"], values(dtype))
    np.testing.assert_array_equal(open_scan([path], ["T1"]).data[0].astype("f4"), read_back(path)[0].astype("f4"))


@pytest.mark.parametrize("name", WRITERS)
def test_a_mask_in_the_scans_format_has_its_geometry_to_the_bit(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, name, PLACES["oblique"])
    volume = open_scan([path], ["T1"])
    made = tmp_path / f"mask{path.suffixes[0]}{''.join(path.suffixes[1:])}"
    write_image(mask_image(mask(), volume), made, volume)
    labels, affine = read_back(made)
    np.testing.assert_array_equal(labels, mask())
    np.testing.assert_array_equal(affine, read_back(path)[1])
    assert labels.dtype == np.uint8
    assert not list(tmp_path.glob(".voxtile*"))


@pytest.mark.parametrize("ending", [suffix for suffix in MASK_SUFFIXES if not suffix.startswith(".tif")])
@pytest.mark.parametrize("name", ["a.nii", "a.mgz", "a.nrrd", "a.mha"])
def test_a_mask_in_any_format_lies_on_the_scan(tmp_path: Path, name: str, ending: str) -> None:
    volume = open_scan([written(tmp_path, name, PLACES["left-handed"])], ["T1"])
    for path in (tmp_path / f"m{ending}", tmp_path / f"M{ending.upper()}"):
        write_image(mask_image(mask(), volume), path, volume)
        assert all(file.is_file() for file in files_to_write(path))
        again = open_scan([path], ["T1"])
        np.testing.assert_array_equal(again.data[0], mask())
        np.testing.assert_allclose(again.affine, volume.affine, rtol=0, atol=1e-4)
    labels, affine = read_back(tmp_path / f"m{ending}")
    np.testing.assert_array_equal(labels, mask())
    np.testing.assert_allclose(affine, volume.affine, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", WRITERS)
def test_content_counts_before_the_name(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, name, PLACES["as RAS"])
    if len(all_files(path)) > 1:
        return  # of two files, one names the other
    expected = open_scan([path], ["T1"])
    other = tmp_path / ("other.nrrd" if ".nii" in name.lower() else "other.nii.gz")
    if ".mg" in name:
        other = tmp_path / "other.mgh"  # its first bytes alone say little
    path.rename(other)
    volume = open_scan([other], ["T1"])
    np.testing.assert_array_equal(volume.data, expected.data)
    assert any("name ends as" in warning for warning in volume.warnings) == (".mg" not in name)


@pytest.mark.parametrize("name", WRITERS)
def test_bytes_give_what_the_file_gives(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, name, PLACES["oblique"])
    if len(all_files(path)) > 1:
        with pytest.raises(InputError, match=r"header whose voxels|found something else"):
            open_scan(path.read_bytes(), ["T1"])
        return
    expected, found = open_scan([path], ["T1"]), open_scan(path.read_bytes(), ["T1"])
    np.testing.assert_array_equal(found.data, expected.data)
    np.testing.assert_array_equal(found.affine, expected.affine)


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_cut_anywhere_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, name, PLACES["oblique"])
    for file in all_files(path):
        whole = file.read_bytes()
        for length in {*range(0, len(whole) - 12, max(len(whole) // 23, 1)), len(whole) // 2}:
            file.write_bytes(whole[:length])
            refused("expected|truncated|damaged|cannot be used|claims", path)
        file.write_bytes(whole)
    assert open_scan([path], ["T1"]).data.shape == (1, *SHAPE)


@pytest.mark.parametrize("name", ["a.nii", "a.mgz", "a.nrrd", "a.mha", "a.img.gz"])
def test_channels_in_one_file_are_the_last_axis(tmp_path: Path, name: str) -> None:
    both = np.stack([values("i2", 1), values("i2", 2)], -1)
    path = tmp_path / name
    if name in ("a.nrrd", "a.mha"):
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(both.transpose(2, 1, 0, 3), isVector=True), str(path))
    else:
        WRITERS[name](path, both, PLACES["oblique"])
    volume = open_scan([path], ["a", "b"])
    np.testing.assert_array_equal(volume.data, np.moveaxis(both, -1, 0))
    refused("4D without a channel meaning", path)


def test_a_time_series_is_refused(tmp_path: Path) -> None:
    for name in ("a.nrrd", "a.mha"):
        SimpleITK.WriteImage(
            SimpleITK.GetImageFromArray(np.zeros((3, 4, 5, 6), np.int16), isVector=False), str(tmp_path / name)
        )
        refused("4D without a channel meaning|found 4 of 4", tmp_path / name)


@pytest.mark.parametrize("name", ["a.nii", "a.mgz", "a.nrrd", "a.mha"])
def test_a_scans_place_gives_the_mask_that_the_scan_gives(tmp_path: Path, name: str) -> None:
    volume = open_scan([written(tmp_path, name, PLACES["oblique"])], ["T1"])
    image = mask_image(mask(), volume)
    for ending, place in (("whole", volume), ("place", volume.without_voxels())):
        write_image(image, tmp_path / f"{ending}{Path(name).suffix}", place)
    whole, place = (tmp_path / f"{ending}{Path(name).suffix}" for ending in ("whole", "place"))
    assert whole.read_bytes() == place.read_bytes()
    assert volume.without_voxels().nbytes == 0


def test_every_format_has_an_ending_of_its_own() -> None:
    assert len(set(SUFFIXES)) == len(SUFFIXES)
    for one in FORMATS:
        assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in one.suffixes)
        assert one.write is None or one.written


def test_header_and_voxels_may_each_be_named(tmp_path: Path) -> None:
    path = written(tmp_path, "a.img", PLACES["oblique"])
    for one in (path, path.with_suffix(".hdr")):
        np.testing.assert_array_equal(open_scan([one], ["T1"]).data[0], values("i2"))
        assert set(all_files(one)) == {path, path.with_suffix(".hdr")}


def test_a_pair_in_two_folders_is_no_scan(tmp_path: Path) -> None:
    path = written(tmp_path, "a.hdr", PLACES["oblique"])
    (tmp_path / "b").mkdir()
    shutil.move(path, tmp_path / "b")
    refused(r"expected the voxels in a\.img beside it", tmp_path / "b" / "a.hdr")
    refused("found", tmp_path / "a.img")


def test_a_header_cannot_lead_elsewhere(tmp_path: Path) -> None:
    for name, line in (("a.nhdr", "data file: "), ("a.mhd", "ElementDataFile = ")):
        path = written(tmp_path, name, PLACES["oblique"])
        text = path.read_text()
        start = text.index(line) + len(line)
        for elsewhere in ("/etc/passwd", "../a.raw", "..", "none.raw", "LIST", "slice%03d.raw 1 9 1"):
            path.write_text(text[:start] + elsewhere + "\n")
            refused("beside it|in one file", path)
            assert all(file.parent == tmp_path for file in all_files(path))


def test_mgh_without_a_place_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "a.mgh", PLACES["oblique"])
    content = bytearray(path.read_bytes())
    content[28:30] = b"\0\0"
    path.write_bytes(bytes(content))
    refused("where its axes run", path)
