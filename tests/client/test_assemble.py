"""Sources become one scan on one grid, or an InputError that names the source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from tests.support.phantoms import saved
from tests.support.stored_scans import AFFINE, SHAPE, refused, values
from voxtile.errors import InputError
from voxtile.io.geometry import NIBABEL
from voxtile.io.scan import open_scan
from voxtile.io.writing import mask_image


def test_one_file_a_channel_and_one_4d_file_give_the_same(tmp_path: Path) -> None:
    stack = [values(seed=seed) for seed in range(3)]
    paths = [saved(tmp_path / f"c{n}.nii.gz", data, AFFINE) for n, data in enumerate(stack)]
    single = saved(tmp_path / "all.nii.gz", np.stack(stack, -1), AFFINE)
    channels = ("T1", "T2", "FLAIR")
    separate, together = open_scan(paths, channels), open_scan([single], channels)
    np.testing.assert_array_equal(separate.data, together.data)
    np.testing.assert_array_equal(separate.data, np.stack(stack))
    assert separate.names == tuple(map(str, paths))


@pytest.mark.parametrize("shape", [(*SHAPE, 1), (*SHAPE, 1, 1)])
def test_axes_of_one_voxel_beyond_the_third_have_no_meaning(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = saved(tmp_path / "scan.nii", values().reshape(shape), AFFINE)
    np.testing.assert_array_equal(open_scan([path], ["T1"]).data[0], values())


def test_channels_of_different_types_join_without_loss(tmp_path: Path) -> None:
    paths = [saved(tmp_path / f"{kind}.nii", values(kind), AFFINE) for kind in ("u2", "i2")]
    read = open_scan(paths, ["a", "b"]).data
    assert read.dtype == np.int32
    np.testing.assert_array_equal(read[0], values("u2"))
    np.testing.assert_array_equal(read[1], values("i2"))


def with_affine(path: Path, affine: np.ndarray[Any, Any]) -> Path:
    saved(path, values(), AFFINE, qform=0)
    content = bytearray(path.read_bytes())
    content[280:328] = affine[:3].astype("<f4").tobytes()
    path.write_bytes(bytes(content))
    return path


@pytest.mark.parametrize(
    ("change", "match"),
    [(np.diag([1e-5, 1, 1, 1]), "spacing"), (np.diag([1, 1, 1e5, 1]), "spacing"),
     (np.diag([1e30, 1, 1, 1]), "spacing"),
     (np.array([[1, 0, 0, 1e9], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "origin")],
)  # fmt: skip
def test_impossible_affines_are_refused(tmp_path: Path, change: np.ndarray[Any, Any], match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        open_scan(with_affine(tmp_path / "scan.nii", change), ["T1"], NIBABEL)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("affine", "match"),
    [(np.diag([0, 1, 1, 1]), "singular"), (np.zeros((4, 4)), "last row"), (np.diag([1, np.nan, 1, 1]), "finite"),
     (np.diag([np.inf, 1, 1, 1]), "finite"), (np.diag([1, 1, 1e5, 1]), "spacing"),
     (np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "singular")],
)  # fmt: skip
def test_impossible_affines_of_arrays_are_refused(affine: np.ndarray[Any, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        open_scan((values(), affine), ["T1"])


def test_without_qform_and_sform_the_spacing_alone_counts_as_in_nibabel(tmp_path: Path) -> None:
    path = saved(tmp_path / "scan.nii", values(), AFFINE, qform=0, sform=0)
    volume = open_scan([path], ["T1"])
    np.testing.assert_array_equal(volume.affine, nib.load(path).affine)
    image = mask_image(np.zeros(SHAPE, np.uint8), volume)
    assert (int(image.header["qform_code"]), int(image.header["sform_code"])) == (0, 0)
    np.testing.assert_array_equal(image.affine, volume.affine)


def test_axes_and_channels_have_to_fit(tmp_path: Path) -> None:
    scan = saved(tmp_path / "scan.nii", values(), AFFINE)
    series = saved(tmp_path / "series.nii", np.zeros((*SHAPE, 4), np.int16), AFFINE)
    line = saved(tmp_path / "line.nii", np.zeros(SHAPE[:1], np.int16), AFFINE)
    refused("4D without a channel meaning", series)
    refused("expected 3 channels.*found 4", series, channels=("a", "b", "c"))
    refused("expected 2 channels.*found 1", scan, channels=("a", "b"))
    refused("one channel.*found 2", scan, scan)
    refused("4D without a channel meaning", scan, series, channels=("a", "b"))
    refused("3D scan, found 1 axes", line)
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
    assert open_scan([one, other], ["a", "b"]).channels == 2
