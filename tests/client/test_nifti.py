"""Reading NIfTI: every way to store a scan gives its values; every way to break one gives an InputError of one line."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.support.phantoms import in_file_order, saved
from tests.support.stored_scans import AFFINE, SHAPE, refused, values, with_scaling
from voxtile.io.scan import open_scan

DTYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_values_equal_nibabels(tmp_path: Path, dtype: str, order: str, version: int, suffix: str) -> None:
    klass, header = (nib.Nifti1Image, nib.Nifti1Header) if version == 1 else (nib.Nifti2Image, nib.Nifti2Header)
    image = klass(values(dtype), AFFINE, header(endianness=order), dtype=np.dtype(dtype))
    path = tmp_path / f"scan{suffix}"
    nib.save(image, path)
    volume = open_scan([path], ["T1"])
    assert volume.data.dtype.isnative
    assert volume.data.shape == (1, *SHAPE)
    np.testing.assert_array_equal(volume.data[0].astype(np.float32), nib.load(path).get_fdata().astype(np.float32))
    np.testing.assert_array_equal(volume.affine, nib.load(path).affine)


@pytest.mark.parametrize(
    ("dtype", "low", "high", "expected"),
    [("i2", -32768, 32767, "i2"), ("u2", 0, 65535, "u2"), ("i4", -900, 900, "i2"), ("i8", 0, 70_000, "i4"),
     ("u4", 0, 2**32 - 1, "f4"), ("f8", 0, 1, "f4"), ("f4", 0, 1, "f4")],
)  # fmt: skip
def test_values_take_the_smallest_type_that_is_exact(
    tmp_path: Path, dtype: str, low: int, high: int, expected: str
) -> None:
    data = np.full(SHAPE, low, dtype)
    data[1, 2, 3] = high
    path = tmp_path / "scan.nii"
    nib.save(nib.Nifti1Image(data, AFFINE, dtype=data.dtype), path)
    assert open_scan([path], ["T1"]).data.dtype == np.dtype(expected)


@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "f4"])
@pytest.mark.parametrize(
    ("slope", "inter"),
    [(1, 0), (0, 5), (float("nan"), 3), (float("inf"), 3), (2.5, -3.25), (1, -1024), (-3, 7), (1e-3, 0), (4e5, 1)],
)
def test_scaling_follows_nibabel(tmp_path: Path, dtype: str, slope: float, inter: float) -> None:
    path = with_scaling(tmp_path / "scan.nii", values(dtype), slope, inter)
    read = open_scan([path], ["T1"]).data[0]
    np.testing.assert_array_equal(read.astype(np.float32), nib.load(path).get_fdata().astype(np.float32))


def test_whole_number_scaling_stays_integer(tmp_path: Path) -> None:
    path = with_scaling(tmp_path / "ct.nii", np.full(SHAPE, 24, np.uint16), 1, -1024)
    read = open_scan([path], ["CT"]).data
    assert read.dtype == np.int16
    assert (read == -1000).all()


def test_scaling_of_64_bit_integers_does_not_overflow(tmp_path: Path) -> None:
    data = np.full(SHAPE, 2**62, np.int64)
    path = with_scaling(tmp_path / "scan.nii", data, 4, 0)
    assert (open_scan([path], ["T1"]).data == np.float32(2.0**64)).all()


def test_intercept_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    refused("intercept", with_scaling(tmp_path / "scan.nii", values(), 2, float("nan")))


def test_gzip_is_told_by_its_bytes_and_may_have_several_members_and_padding(tmp_path: Path) -> None:
    plain = saved(tmp_path / "scan.nii", values(), AFFINE).read_bytes()
    path = tmp_path / "odd_name.nii"
    path.write_bytes(gzip.compress(plain[:100]) + gzip.compress(plain[100:]) + bytes(1024))
    np.testing.assert_array_equal(open_scan([path], ["T1"]).data[0], values())


def test_header_extensions_are_stepped_over(tmp_path: Path) -> None:
    image = nib.Nifti1Image(values(), AFFINE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 3000))
    path = tmp_path / "scan.nii.gz"
    nib.save(image, path)
    np.testing.assert_array_equal(open_scan([path], ["T1"]).data[0], values())


def test_read_data_keeps_the_files_order_and_copies_nothing(tmp_path: Path) -> None:
    volume = open_scan([saved(tmp_path / "scan.nii.gz", values(), AFFINE)], ["T1"])
    assert volume.data[0].flags.f_contiguous
    np.testing.assert_array_equal(in_file_order(volume.data), volume.data)


@pytest.mark.parametrize(
    ("content", "match"),
    [(b"", "an empty file"), (b"\xee" * 1000, "something else"), (b"x" * 1000, "text"),
     (b"NRRD0004" + b"x" * 600, "NRRD header"),
     (bytes(128) + b"DICM" + bytes(900), "is DICOM that says neither"), (b"PK\x03\x04" + b"x" * 600, "zip"),
     (gzip.compress(b"hello", mtime=0), "text"), (b"\x1f\x8b" + b"garbage" * 30, "gzip"),
     (b"\x1f\x8b", "gzip")],
)  # fmt: skip
def test_what_is_no_nifti_is_refused(tmp_path: Path, content: bytes, match: str) -> None:
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(content)
    refused(match, path)


def test_missing_files_folders_and_pairs_are_refused(tmp_path: Path) -> None:
    refused("found nothing of that name", tmp_path / "none.nii")
    refused("an empty folder", tmp_path)
    nib.save(nib.Nifti1Pair(values(), AFFINE), tmp_path / "pair.hdr")
    (tmp_path / "pair.img").unlink()
    refused(r"expected the voxels in pair.img beside it", tmp_path / "pair.hdr")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, suffix: str) -> None:
    whole = saved(tmp_path / f"whole{suffix}", values(), AFFINE).read_bytes()
    path = tmp_path / f"cut{suffix}"
    for length in range(0, len(whole), 13):
        path.write_bytes(whole[:length])
        refused("found|truncated|gzip", path)
    path.write_bytes(whole[:-1])  # of a gzip stream, only the checksum is incomplete
    refused("found|truncated", path)


def test_a_gzip_file_with_a_wrong_checksum_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "scan.nii.gz", values(), AFFINE)
    content = bytearray(path.read_bytes())
    content[-6] ^= 1
    path.write_bytes(bytes(content))
    refused("gzip", path)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_claim_of_a_trillion_voxels_is_refused_before_anything_is_allocated(
    tmp_path: Path, compressed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = nib.Nifti2Header()
    header.set_data_shape((10_000, 10_000, 10_000))
    header.set_sform(np.eye(4), code=1)
    header["vox_offset"] = 544
    content = header.binaryblock + bytes(2000)
    path = tmp_path / "scan.nii"
    path.write_bytes(gzip.compress(content) if compressed else content)
    monkeypatch.setattr(np, "empty", lambda *_: pytest.fail("something was allocated"))
    refused("more than a gzip file" if compressed else "truncated", path)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_not_finite_are_counted_and_placed(tmp_path: Path, bad: float) -> None:
    data = values("f4")
    data[4, 1, 3] = data[2, 3, 5] = bad
    refused(r"found 2 that are NaN.*voxel \(4, 1, 3\)", saved(tmp_path / "scan.nii", data, AFFINE))


def test_values_beyond_float32_are_refused(tmp_path: Path) -> None:
    data = values("f8")
    data[0, 0, 1] = 1e300
    refused("beyond float32", saved(tmp_path / "scan.nii", data, AFFINE))


def test_colours_and_complex_numbers_are_refused_by_name(tmp_path: Path) -> None:
    refused("complex64", saved(tmp_path / "c.nii", np.zeros(SHAPE, np.complex64), AFFINE))
    rgb = np.zeros(SHAPE, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    refused(r"colours \(RGB\)", saved(tmp_path / "rgb.nii", rgb, AFFINE))
    for code in (1, 1536):  # single bits; quadruple precision, which no processor here has
        content = bytearray(saved(tmp_path / "odd.nii", values(), AFFINE).read_bytes())
        content[70:74] = struct.pack("<hh", code, 128)
        (tmp_path / "odd.nii").write_bytes(bytes(content))
        refused(f"data code {code} not supported", tmp_path / "odd.nii")
