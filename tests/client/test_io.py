"""Reading: every way to store a scan gives its values; every way to break one gives an InputError of one line.
Writing: a mask repeats the scan's geometry to the bit, and appears whole or not at all."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from tests.support.phantoms import affine_of, in_file_order, phantom_volume, sampled, saved
from voxtile.errors import InputError, OutputError
from voxtile.io import images as io
from voxtile.io.atomic import atomic_file
from voxtile.io.images import (
    check_mask_name,
    check_writable,
    mask_image,
    read_scan,
    volume_from_array,
    volume_from_image,
    write_image,
)

SHAPE = (7, 5, 6)
AFFINE = affine_of(SHAPE, (1.0, 1.5, 2.0))
DTYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")


def values(dtype: str = "i2", seed: int = 0) -> np.ndarray[Any, Any]:
    """Values that use the type's whole range, where float32 can hold it."""
    rng = np.random.default_rng(seed)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return rng.normal(0, 1000, SHAPE).astype(kind)
    info = np.iinfo(kind)
    return rng.integers(info.min, info.max, SHAPE, dtype=kind, endpoint=True)


def refused(match: str, *paths: Path | str, channels: tuple[str, ...] = ("T1",)) -> None:
    with pytest.raises(InputError, match=match) as caught:
        read_scan(paths, channels)
    assert "\n" not in str(caught.value)


# Reading ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_values_equal_nibabels(tmp_path: Path, dtype: str, order: str, version: int, suffix: str) -> None:
    klass, header = (nib.Nifti1Image, nib.Nifti1Header) if version == 1 else (nib.Nifti2Image, nib.Nifti2Header)
    image = klass(values(dtype), AFFINE, header(endianness=order), dtype=np.dtype(dtype))
    path = tmp_path / f"scan{suffix}"
    nib.save(image, path)
    volume = read_scan([path], ["T1"])
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
    assert read_scan([path], ["T1"]).data.dtype == np.dtype(expected)


def with_scaling(path: Path, data: np.ndarray[Any, Any], slope: float, inter: float) -> Path:
    """The file, with these bits as scl_slope and scl_inter, which nibabel would not write."""
    nib.save(nib.Nifti1Image(data, AFFINE, dtype=data.dtype), path)
    content = bytearray(path.read_bytes())
    content[112:120] = struct.pack("<ff", slope, inter)
    path.write_bytes(bytes(content))
    return path


@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "f4"])
@pytest.mark.parametrize(
    ("slope", "inter"),
    [(1, 0), (0, 5), (float("nan"), 3), (float("inf"), 3), (2.5, -3.25), (1, -1024), (-3, 7), (1e-3, 0), (4e5, 1)],
)
def test_scaling_follows_nibabel(tmp_path: Path, dtype: str, slope: float, inter: float) -> None:
    path = with_scaling(tmp_path / "scan.nii", values(dtype), slope, inter)
    read = read_scan([path], ["T1"]).data[0]
    np.testing.assert_array_equal(read.astype(np.float32), nib.load(path).get_fdata().astype(np.float32))


def test_whole_number_scaling_stays_integer(tmp_path: Path) -> None:
    path = with_scaling(tmp_path / "ct.nii", np.full(SHAPE, 24, np.uint16), 1, -1024)
    read = read_scan([path], ["CT"]).data
    assert read.dtype == np.int16
    assert (read == -1000).all()


def test_scaling_of_64_bit_integers_does_not_overflow(tmp_path: Path) -> None:
    data = np.full(SHAPE, 2**62, np.int64)
    path = with_scaling(tmp_path / "scan.nii", data, 4, 0)
    assert (read_scan([path], ["T1"]).data == np.float32(2.0**64)).all()


def test_intercept_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    refused("intercept", with_scaling(tmp_path / "scan.nii", values(), 2, float("nan")))


def test_gzip_is_told_by_its_bytes_and_may_have_several_members_and_padding(tmp_path: Path) -> None:
    plain = saved(tmp_path / "scan.nii", values(), AFFINE).read_bytes()
    path = tmp_path / "odd_name.nii"
    path.write_bytes(gzip.compress(plain[:100]) + gzip.compress(plain[100:]) + bytes(1024))
    np.testing.assert_array_equal(read_scan([path], ["T1"]).data[0], values())


def test_header_extensions_are_stepped_over(tmp_path: Path) -> None:
    image = nib.Nifti1Image(values(), AFFINE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 3000))
    path = tmp_path / "scan.nii.gz"
    nib.save(image, path)
    np.testing.assert_array_equal(read_scan([path], ["T1"]).data[0], values())


def test_one_file_a_channel_and_one_4d_file_give_the_same(tmp_path: Path) -> None:
    stack = [values(seed=seed) for seed in range(3)]
    paths = [saved(tmp_path / f"c{n}.nii.gz", data, AFFINE) for n, data in enumerate(stack)]
    single = saved(tmp_path / "all.nii.gz", np.stack(stack, -1), AFFINE)
    channels = ("T1", "T2", "FLAIR")
    separate, together = read_scan(paths, channels), read_scan([single], channels)
    np.testing.assert_array_equal(separate.data, together.data)
    np.testing.assert_array_equal(separate.data, np.stack(stack))
    assert separate.names == tuple(map(str, paths))


@pytest.mark.parametrize("shape", [(*SHAPE, 1), (*SHAPE, 1, 1)])
def test_axes_of_one_voxel_beyond_the_third_have_no_meaning(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = saved(tmp_path / "scan.nii", values().reshape(shape), AFFINE)
    np.testing.assert_array_equal(read_scan([path], ["T1"]).data[0], values())


def test_channels_of_different_types_join_without_loss(tmp_path: Path) -> None:
    paths = [saved(tmp_path / f"{kind}.nii", values(kind), AFFINE) for kind in ("u2", "i2")]
    read = read_scan(paths, ["a", "b"]).data
    assert read.dtype == np.int32
    np.testing.assert_array_equal(read[0], values("u2"))
    np.testing.assert_array_equal(read[1], values("i2"))


# Bad input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "match"),
    [(b"", "an empty file"), (b"x" * 1000, "something else"), (b"NRRD0004" + b"x" * 600, "NRRD"),
     (bytes(128) + b"DICM" + bytes(900), "DICOM"), (b"PK\x03\x04" + b"x" * 600, "zip"),
     (gzip.compress(b"hello"), "something else"), (b"\x1f\x8b" + b"garbage" * 30, "gzip"), (b"\x1f\x8b", "gzip")],
)  # fmt: skip
def test_what_is_no_nifti_is_refused(tmp_path: Path, content: bytes, match: str) -> None:
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(content)
    refused(match, path)


def test_missing_files_folders_and_pairs_are_refused(tmp_path: Path) -> None:
    refused("found nothing of that name", tmp_path / "none.nii")
    refused("a folder", tmp_path)
    nib.save(nib.Nifti1Pair(values(), AFFINE), tmp_path / "pair.hdr")
    refused(r"half of a .hdr/.img pair", tmp_path / "pair.hdr")


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


def with_affine(path: Path, affine: np.ndarray[Any, Any]) -> Path:
    saved(path, values(), AFFINE, qform=0)
    content = bytearray(path.read_bytes())
    content[280:328] = affine[:3].astype("<f4").tobytes()
    path.write_bytes(bytes(content))
    return path


@pytest.mark.parametrize(
    ("change", "match"),
    [(np.diag([0, 1, 1, 1]), "singular"), (np.zeros((4, 4)), "singular"), (np.diag([1e-5, 1, 1, 1]), "spacing"),
     (np.diag([1, 1, 1e5, 1]), "spacing"), (np.diag([1e30, 1, 1, 1]), "spacing"),
     (np.diag([1, np.nan, 1, 1]), "finite"), (np.diag([np.inf, 1, 1, 1]), "finite"),
     (np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "singular"),
     (np.array([[1, 0, 0, 1e9], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "origin")],
)  # fmt: skip
def test_impossible_affines_are_refused(tmp_path: Path, change: np.ndarray[Any, Any], match: str) -> None:
    refused(match, with_affine(tmp_path / "scan.nii", change))


def test_without_qform_and_sform_the_spacing_alone_counts_as_in_nibabel(tmp_path: Path) -> None:
    path = saved(tmp_path / "scan.nii", values(), AFFINE, qform=0, sform=0)
    volume = read_scan([path], ["T1"])
    np.testing.assert_array_equal(volume.affine, nib.load(path).affine)
    image = mask_image(np.zeros(SHAPE, np.uint8), volume)
    assert (int(image.header["qform_code"]), int(image.header["sform_code"])) == (0, 0)
    np.testing.assert_array_equal(image.affine, volume.affine)


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


def test_axes_and_channels_have_to_fit(tmp_path: Path) -> None:
    scan = saved(tmp_path / "scan.nii", values(), AFFINE)
    series = saved(tmp_path / "series.nii", np.zeros((*SHAPE, 4), np.int16), AFFINE)
    flat = saved(tmp_path / "flat.nii", np.zeros(SHAPE[:2], np.int16), AFFINE)
    refused("4D without a channel meaning", series)
    refused("expected 3 channels.*found 4", series, channels=("a", "b", "c"))
    refused("expected 2 channels.*found 1", scan, channels=("a", "b"))
    refused("one channel.*found 2", scan, scan)
    refused("4D without a channel meaning", scan, series, channels=("a", "b"))
    refused("3D scan, found 2 axes", flat)
    refused("found no file")


def test_channels_on_different_grids_are_refused_with_both_names(tmp_path: Path) -> None:
    one = saved(tmp_path / "one.nii", values(), AFFINE)
    moved = AFFINE.copy()
    moved[0, 3] += 0.5
    other = saved(tmp_path / "other.nii", values(), moved)
    smaller = saved(tmp_path / "smaller.nii", values()[:-1], AFFINE)
    refused("other.nii: expected the grid of .*one.nii.*0.5 mm", one, other, channels=("a", "b"))
    refused(r"smaller.nii: expected the grid of .*one.nii, \(7, 5, 6\)", one, smaller, channels=("a", "b"))


def test_rounding_in_headers_is_no_other_grid(tmp_path: Path) -> None:
    one = saved(tmp_path / "one.nii", values(), AFFINE)
    other = saved(tmp_path / "other.nii", values(), AFFINE + 1e-4 * (np.arange(16).reshape(4, 4) < 12))
    assert read_scan([one, other], ["a", "b"]).channels == 2


# Images and arrays in memory -------------------------------------------------------------------------------


def test_images_and_arrays_give_what_the_file_gives(tmp_path: Path) -> None:
    path = with_scaling(tmp_path / "scan.nii", values(), 2.5, 3)
    read = read_scan([path], ["T1"])
    for volume in (
        volume_from_image(nib.load(path), ["T1"]),
        volume_from_image([nib.Nifti1Image(nib.load(path).get_fdata(), AFFINE)], ["T1"]),
        volume_from_array(nib.load(path).get_fdata(), AFFINE, ["T1"]),
    ):
        np.testing.assert_array_equal(volume.data, read.data)
        np.testing.assert_allclose(volume.affine, read.affine)
        np.testing.assert_allclose(mask_image(np.zeros(SHAPE, np.uint8), volume).affine, AFFINE)


def test_an_image_of_another_format_is_taken_with_its_affine() -> None:
    volume = volume_from_image(nib.MGHImage(values("f4"), AFFINE), ["T1"])
    np.testing.assert_array_equal(volume.data[0], values("f4"))
    np.testing.assert_allclose(mask_image(np.zeros(SHAPE, np.uint8), volume).affine, AFFINE, atol=1e-5)


def test_what_is_no_usable_image_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "scan.nii.gz", values(), AFFINE)
    lazy = nib.load(path)
    path.write_bytes(path.read_bytes()[:200])
    flat = nib.Nifti1Image(values(), AFFINE)
    flat.affine[:3, 2] = 0
    for image, match in (
        ("text", "nibabel image"),
        (lazy, "scan.nii.gz: cannot be read"),
        (nib.Nifti1Image(values(), None), "affine"),
        (flat, "singular"),
        (nib.Nifti1Image(np.zeros((0, 3, 3), np.int16), AFFINE), "empty"),
        (nib.Nifti1Image(np.full(SHAPE, np.nan), AFFINE), "finite"),
    ):
        with pytest.raises(InputError, match=match):
            volume_from_image([image], ["T1"])
    with pytest.raises(InputError, match="4 × 4"):
        volume_from_array(values(), np.eye(3), ["T1"])


# Writing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "SAR", "PIL"])
@pytest.mark.parametrize("angles", [(0.0, 0.0, 0.0), (12.0, -23.0, 31.0)])
def test_a_mask_repeats_the_scans_geometry_to_the_bit(
    tmp_path: Path, version: int, suffix: str, codes: str, angles: tuple[float, float, float]
) -> None:
    affine = affine_of(SHAPE, (0.9, 1.1, 2.3), codes, angles)
    scan = saved(tmp_path / f"scan{suffix}", sampled(SHAPE, affine).astype(np.int16), affine, version, qform=1, sform=4)
    labels = np.arange(np.prod(SHAPE)).reshape(SHAPE) % 5
    write_image(mask_image(labels, read_scan([scan], ["T1"])), tmp_path / f"mask{suffix}")
    one, mask = nib.load(scan), nib.load(tmp_path / f"mask{suffix}")
    assert type(mask) is type(one)
    for field in (*io.GEOMETRY_FIELDS, "dim"):
        np.testing.assert_array_equal(mask.header[field], one.header[field])
    np.testing.assert_array_equal(mask.header["pixdim"][:4], one.header["pixdim"][:4])
    np.testing.assert_array_equal(mask.affine, one.affine)
    np.testing.assert_array_equal(mask.get_qform(), one.get_qform())
    assert mask.get_data_dtype() == np.uint8
    assert (mask.dataobj.slope, mask.dataobj.inter) == (1, 0)
    np.testing.assert_array_equal(np.asarray(mask.dataobj), labels)


def test_a_mask_of_a_big_endian_scan_keeps_its_geometry(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(values(), AFFINE, nib.Nifti1Header(endianness=">")), tmp_path / "scan.nii")
    write_image(mask_image(values() > 0, read_scan([tmp_path / "scan.nii"], ["T1"])), tmp_path / "mask.nii")
    np.testing.assert_array_equal(nib.load(tmp_path / "mask.nii").affine, nib.load(tmp_path / "scan.nii").affine)


def test_nothing_but_geometry_is_repeated(tmp_path: Path) -> None:
    image = nib.Nifti1Image(values(), AFFINE)
    image.header["descrip"] = b"a name"
    image.header["db_name"] = b"a number"
    image.header["intent_name"] = b"a study"
    nib.save(image, tmp_path / "scan.nii")
    write_image(mask_image(values() > 0, read_scan([tmp_path / "scan.nii"], ["T1"])), tmp_path / "mask.nii")
    assert b"a n" not in (tmp_path / "mask.nii").read_bytes()
    assert b"a study" not in (tmp_path / "mask.nii").read_bytes()


def test_labels_take_the_smallest_type() -> None:
    volume = phantom_volume(SHAPE)
    assert mask_image(np.full(SHAPE, 255), volume).get_data_dtype() == np.uint8
    assert mask_image(np.full(SHAPE, 256), volume).get_data_dtype() == np.uint16
    assert mask_image(np.zeros(SHAPE, bool), volume).get_data_dtype() == np.uint8
    with pytest.raises(ValueError, match="shape"):
        mask_image(np.zeros((2, 2, 2), np.uint8), volume)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (0, 2, 1), (2, 0, 1), (1, 0, 2)])
def test_any_memory_order_is_written_right(
    tmp_path: Path, suffix: str, axes: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(io, "WRITE_BYTES", 5000)  # several pieces
    labels = np.random.default_rng(1).integers(0, 4, (23, 37, 29)).astype(np.uint8)
    stored = np.ascontiguousarray(labels.transpose(axes)[::-1])[::-1].transpose(np.argsort(axes))
    path = tmp_path / f"mask{suffix}"
    write_image(mask_image(stored, phantom_volume(labels.shape)), path)
    np.testing.assert_array_equal(np.asarray(nib.load(path).dataobj), labels)


def test_scores_are_written_as_channels(tmp_path: Path) -> None:
    scores = np.random.default_rng(2).random((*SHAPE, 3)).astype(np.float32)
    write_image(mask_image(scores, phantom_volume(SHAPE)), tmp_path / "scores.nii.gz")
    np.testing.assert_array_equal(nib.load(tmp_path / "scores.nii.gz").get_fdata(dtype=np.float32), scores)


def test_equal_masks_are_equal_files(tmp_path: Path) -> None:
    image = mask_image(values() > 0, phantom_volume(SHAPE))
    write_image(image, tmp_path / "one.nii.gz")
    write_image(image, tmp_path / "another name.nii.gz")
    assert (tmp_path / "one.nii.gz").read_bytes() == (tmp_path / "another name.nii.gz").read_bytes()


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "mask.nii"
    path.write_bytes(b"old")

    def interrupted() -> None:
        with atomic_file(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_outputs_that_cannot_be_written_are_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "folder.nii").mkdir()
    with pytest.raises(OutputError, match="ends in"):
        check_mask_name(tmp_path / "mask.png")
    for name, match in (("none/mask.nii", "folder"), ("folder.nii", "found a folder")):
        with pytest.raises(OutputError, match=match):
            check_writable(tmp_path / name)
    with pytest.raises(OutputError, match="ends in"):
        write_image(mask_image(values() > 0, phantom_volume(SHAPE)), tmp_path / "mask.png")
    with pytest.raises(OutputError, match="cannot be written"):
        check_writable("/proc/mask.nii")
    check_writable(tmp_path / "mask.nii.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.nii"]


def test_an_output_in_a_vanished_folder_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        write_image(mask_image(values() > 0, phantom_volume(SHAPE)), tmp_path / "gone" / "mask.nii")


def test_read_data_keeps_the_files_order_and_copies_nothing(tmp_path: Path) -> None:
    volume = read_scan([saved(tmp_path / "scan.nii.gz", values(), AFFINE)], ["T1"])
    assert volume.data[0].flags.f_contiguous
    np.testing.assert_array_equal(in_file_order(volume.data), volume.data)
