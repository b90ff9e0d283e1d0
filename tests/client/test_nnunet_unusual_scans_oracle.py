"""Scans that nnU-Net's users meet sooner or later: the client makes of a file what nnU-Net makes of it, or refuses it
by name."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from numpy.typing import NDArray

from tests.support.nnunet_folders import STATISTICS, configuration
from voxtile import InputError
from voxtile.chains.nnunet.plan import NnunetPlan
from voxtile.chains.nnunet.preprocessing import preprocess
from voxtile.chains.nnunet.reader_properties import reader_axes
from voxtile.io.scan import open_scan

DATA_TOLERANCE = 1e-5
"""Of the range: order-3 resampling in float32 against nnU-Net's in float64."""
SHAPE, SPACING = (17, 14, 11), (1.1, 0.9, 1.7)
READERS = ("SimpleITKIO", "NibabelIO")
FIELDS = {"pixdim": 76, "qform_code": 252, "srow_x": 280}
"""Where NIfTI-1 keeps them."""


def plans(channels: int, reader: str) -> dict[str, Any]:
    schemes = {"normalization_schemes": ["ZScoreNormalization"] * channels, "use_mask_for_norm": [True] * channels}
    return {
        "dataset_name": "Dataset999_Generated",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": reader,
        "transpose_forward": [1, 0, 2],
        "transpose_backward": [1, 0, 2],
        "configurations": {"3d": configuration((16, 16, 16), (1.0, 1.5, 1.2), **schemes)},
        "foreground_intensity_properties_per_channel": {str(channel): STATISTICS for channel in range(channels)},
    }


def by_nnunet(files: list[Path], channels: int, reader: str) -> NDArray[Any]:
    manager = PlansManager(plans(channels, reader))
    dataset = {"labels": {"background": 0, "one": 1}, "file_ending": ".nii.gz"}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # means of empty slices, and remarks on other origins
        data, _, _ = DefaultPreprocessor(verbose=False).run_case(
            [str(file) for file in files], None, manager, manager.get_configuration("3d"), dataset
        )
    return np.asarray(data)


def by_voxtile(files: list[Path], channels: int, reader: str) -> NDArray[np.float32]:
    content = plans(channels, reader)
    plan = NnunetPlan.parse({**content, **content["configurations"]["3d"]})
    volume = open_scan(files, [f"T{number}" for number in range(channels)], reader)
    axes = reader_axes(volume, reader)
    return preprocess(axes.apply(volume.data), axes.reorder(volume.header_spacing), plan).data


def values(shape: tuple[int, ...] = SHAPE) -> NDArray[np.int16]:
    data = np.random.default_rng(5).integers(1, 900, shape).astype(np.int16)
    data[:2], data[:, -3:] = 0, 0
    return data


def write(file: Path, data: NDArray[Any], affine: NDArray[np.float64] | None = None, **fields: Any) -> Path:
    """A NIfTI file whose header says `fields` whatever nibabel would make of them."""
    image = nib.Nifti1Image(data, np.diag([*SPACING, 1.0]) if affine is None else affine)
    image.set_sform(image.affine, 1)
    image.set_qform(image.affine, 1)
    for name, value in fields.items():
        image.header[name] = value
    nib.save(image, file)
    return file


def patched(file: Path, **fields: NDArray[Any]) -> Path:
    """The file with these fields as they are given: nibabel would write none that it takes for wrong."""
    raw = bytearray(file.read_bytes())
    for name, value in fields.items():
        raw[FIELDS[name] : FIELDS[name] + value.nbytes] = value.tobytes()
    file.write_bytes(raw)
    return file


def assert_nnunets(files: list[Path], channels: int, reader: str) -> None:
    expected, found = by_nnunet(files, channels, reader), by_voxtile(files, channels, reader)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_allclose(found, expected, atol=DATA_TOLERANCE * max(float(np.ptp(expected)), 1.0))


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(np.zeros(SHAPE, np.int16), id="only zeros"),
        pytest.param(values((17, 14, 1)), id="a single slice"),
        pytest.param(values((17, 1, 11)), id="a single row"),
        pytest.param(np.full(SHAPE, 7, np.uint8), id="constant"),
    ],
)
def test_unusual_values_become_what_nnunet_makes_of_them(tmp_path: Path, data: NDArray[Any], reader: str) -> None:
    assert_nnunets([write(tmp_path / "scan.nii.gz", data)], 1, reader)


def test_a_fourth_axis_of_one_changes_nothing(tmp_path: Path) -> None:
    assert_nnunets([write(tmp_path / "scan.nii.gz", values()[..., None])], 1, "SimpleITKIO")


def test_frames_of_one_file_are_channels_as_in_nnunet(tmp_path: Path) -> None:
    file = write(tmp_path / "scan.nii.gz", np.stack([values(), 900 - values()], axis=3))
    assert_nnunets([file], 2, "SimpleITKIO")


def test_frames_without_a_meaning_are_refused_as_by_nnunet(tmp_path: Path) -> None:
    file = write(tmp_path / "scan.nii.gz", np.stack([values(), values()], axis=3))
    with pytest.raises(IndexError):
        by_nnunet([file], 1, "SimpleITKIO")
    with pytest.raises(InputError, match="4D without a channel meaning"):
        by_voxtile([file], 1, "SimpleITKIO")


def turned(angle: float) -> NDArray[np.float64]:
    """Spacings along axes that are turned about the third."""
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return affine @ np.diag([*SPACING, 1.0])


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("angle", [0.1, 0.8, 2.9])
def test_oblique_scans_are_nnunets(tmp_path: Path, angle: float, reader: str) -> None:
    assert_nnunets([write(tmp_path / "scan.nii.gz", values(), turned(angle))], 1, reader)


def sheared(share: float) -> NDArray[np.float64]:
    affine = np.diag([*SPACING, 1.0])
    affine[0, 2] = share * SPACING[2]
    return affine


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("share", [0.0005, 0.05, 0.5])
def test_sheared_scans_are_nnunets(tmp_path: Path, share: float, reader: str) -> None:
    assert_nnunets([write(tmp_path / "scan.nii.gz", values(), sheared(share))], 1, reader)


def test_sheared_scan_without_a_qform_is_read_as_by_nibabel(tmp_path: Path) -> None:
    file = patched(write(tmp_path / "scan.nii", values(), sheared(0.5)), qform_code=np.zeros(1, np.int16))
    with pytest.raises(RuntimeError, match="orthonormal"):
        by_nnunet([file], 1, "SimpleITKIO")
    assert_nnunets([file], 1, "NibabelIO")


DIFFERENT: list[Any] = [
    pytest.param(values((17, 14, 12)), None, "found .17, 14, 12.", id="shape"),
    pytest.param(values(), np.diag([1.1, 0.9, 2.0, 1.0]), "mm off", id="spacing"),
]


@pytest.mark.parametrize(("data", "affine", "message"), DIFFERENT)
@pytest.mark.parametrize("reader", READERS)
def test_channels_of_another_grid_are_refused_as_by_nnunet(
    tmp_path: Path, data: NDArray[Any], affine: Any, message: str, reader: str
) -> None:
    files = [write(tmp_path / "c_0000.nii.gz", values()), write(tmp_path / "c_0001.nii.gz", data, affine)]
    with pytest.raises(RuntimeError):
        by_nnunet(files, 2, reader)
    with pytest.raises(InputError, match=rf"c_0001.nii.gz: expected the grid of .*c_0000.nii.gz.*{message}"):
        by_voxtile(files, 2, reader)


def test_channels_that_lie_elsewhere_are_refused_where_nnunet_warns(tmp_path: Path) -> None:
    moved = np.diag([*SPACING, 1.0])
    moved[:3, 3] = 5
    files = [write(tmp_path / "c_0000.nii.gz", values()), write(tmp_path / "c_0001.nii.gz", values(), moved)]
    assert by_nnunet(files, 2, "SimpleITKIO").shape[0] == 2
    with pytest.raises(InputError, match=r"lies up to 8\.66 mm off; resample one onto the other"):
        by_voxtile(files, 2, "SimpleITKIO")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e9])
def test_spacing_that_cannot_be_is_refused(tmp_path: Path, bad: float, reader: str) -> None:
    file = without_size(tmp_path / "scan.nii", bad)
    with pytest.raises(InputError, match=r"scan.nii: expected a (voxel size|spacing)"):
        by_voxtile([file], 1, reader)


@pytest.mark.parametrize("reader", READERS)
def test_a_missing_voxel_size_is_one_as_in_nnunets_readers(tmp_path: Path, reader: str) -> None:
    file = without_size(tmp_path / "scan.nii", 0)
    ours, theirs = by_voxtile([file], 1, reader), by_nnunet([file], 1, reader)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=DATA_TOLERANCE * np.ptp(theirs))


def without_size(file: Path, size: float) -> Path:
    sizes = np.array([1, size, size, size], np.float32)
    return patched(write(file, values()), pixdim=sizes, qform_code=np.zeros(1, np.int16))
