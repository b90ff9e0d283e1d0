"""`voxtile batch` over nnU-Net's imagesTs folders on the real server, against nnU-Net's own prediction of the folder.

The oracle is nnUNetPredictor.predict_from_files, for the cascade its form without processes of its own; both run with
single-precision accumulators.
"""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nnunetv2.ensembling.ensemble import merge_files
from typer.testing import CliRunner, Result

from tests.support.importing import import_nnunet
from tests.support.nnunet_folders import (
    Oracle,
    Training,
    architecture,
    configuration,
    single_precision,
    write_folder,
    write_scan,
)
from voxtile.cli.app import app
from voxtile_server.embedded import EmbeddedServer

ONE_VOXEL_IN = 20_000
"""As in test_nnunet_end_to_end.py: scores that are equal to float32's rounding have no right label."""
PROBABILITY_ERROR = 1e-3
"""Far above convolutions in another order of sums (1e-6 seen), far below any meaning."""
SETTINGS = {"serving": {"warm_up": False, "max_batch_size": 2, "threads": 1}}
FULL = configuration(
    (16, 16, 16),
    (1.5, 1.0, 1.0),
    normalization_schemes=["ZScoreNormalization", "RescaleTo01Normalization"],
    use_mask_for_norm=[True, False],
    architecture=architecture(3, "ResidualUNet"),
)
PAIR = Training("3d_fullres", {"3d_fullres": FULL}, channels=("T1", "T2"), mirror_axes=(0,))
CASCADE = Training(
    "3d_cascade_fullres",
    {
        "3d_lowres": configuration((16, 16, 16), (2.5, 2.2, 2.2), next_stage="3d_cascade_fullres"),
        "3d_cascade_fullres": configuration((16, 16, 16), (1.5, 1.0, 1.0), previous_stage="3d_lowres"),
    },
)
LOWRES = replace(CASCADE, name="3d_lowres")
SCANS = {"brain_1": ((26, 23, 17), (1.1, 0.9, 1.7)), "brain_2": ((21, 24, 19), (0.9, 1.2, 1.5))}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def url(results: Path) -> Iterator[str]:
    write_folder(results / "cascade", LOWRES, 7)
    folders = {
        "pair": write_folder(results / "pair", PAIR, 3),
        "cascade": write_folder(results / "cascade", CASCADE, 6),
    }
    for name, folder in folders.items():
        import_nnunet(folder, name, results / "models", engines=["onnxruntime"], settings=SETTINGS)
    with EmbeddedServer(results / "models") as server:
        yield server.grpc_url
        server.kill()


def batch(url: str, model: str, images: Path, labels: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["batch", str(images), str(labels), "--model", model, "--url", url, *options])


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """nnU-Net with single-precision sums, and without its remarks."""
    with single_precision(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def predicted_one_by_one(folder: Path, images: Path, labels: Path, previous: Path | None = None) -> None:
    """nnU-Net's own masks and .npz of a whole folder, without processes of its own."""
    labels.mkdir()
    with quietly():
        Oracle(folder, (0,)).predictor.predict_from_files_sequential(
            str(images), str(labels), True, folder_with_segs_from_prev_stage=str(previous) if previous else None
        )


def assert_same_folder(found: Path, expected: Path, names: list[str]) -> None:
    assert sorted(file.name for file in found.glob("*.nii.gz")) == sorted(f"{name}.nii.gz" for name in names)
    for name in names:
        mine, theirs = nib.load(found / f"{name}.nii.gz"), nib.load(expected / f"{name}.nii.gz")
        assert mine.get_data_dtype() == theirs.get_data_dtype() == np.uint8
        np.testing.assert_allclose(mine.affine, theirs.affine, atol=1e-5)
        labels, wanted = np.asarray(mine.dataobj), np.asarray(theirs.dataobj)
        assert len(np.unique(wanted)) > 1, "a mask of one label proves nothing"
        assert (labels != wanted).sum() <= labels.size // ONE_VOXEL_IN
        with np.load(found / f"{name}.npz") as one, np.load(expected / f"{name}.npz") as other:
            assert one.files == other.files == ["probabilities"]
            assert one["probabilities"].dtype == other["probabilities"].dtype == np.float32
            np.testing.assert_allclose(one["probabilities"], other["probabilities"], atol=PROBABILITY_ERROR)


def assert_same_properties(mine: Any, theirs: Any, key: str = "") -> None:
    """The same words, nested alike, and numbers that differ by what float32 headers lose."""
    if isinstance(theirs, dict):
        assert sorted(mine) == sorted(theirs)
        for word in theirs:
            assert_same_properties(mine[word], theirs[word], word)
    else:
        np.testing.assert_allclose(mine, theirs, atol=1e-5, err_msg=key)


def ensembled(folders: list[Path], name: str, oracle: Oracle, output: Path) -> None:
    """nnU-Net's own ensemble of one case."""
    merge_files(
        [str(folder / f"{name}.npz") for folder in folders], str(output / name), ".nii.gz", oracle.io,
        oracle.predictor.label_manager,
    )  # fmt: skip


def test_folder_of_two_channels_is_nnunets(url: str, results: Path, tmp_path: Path) -> None:
    images, labels = tmp_path / "imagesTs", tmp_path / "labelsPr"
    for name, (shape, spacing) in SCANS.items():
        write_scan(images, name, shape, spacing, 2)
    with quietly():
        Oracle(next((results / "pair").iterdir()), (0,)).predictor.predict_from_files(
            str(images), str(tmp_path / "oracle"), True, True, 1, 1
        )
    done = batch(url, "pair", images, labels, "--probabilities")
    assert done.exit_code == 0, done.output
    assert_same_folder(labels, tmp_path / "oracle", list(SCANS))
    oracle = Oracle(next((results / "pair").iterdir()), (0,))
    for name in SCANS:
        mine, theirs = (pickle.loads((folder / f"{name}.pkl").read_bytes()) for folder in (labels, tmp_path / "oracle"))
        assert_same_properties(mine, theirs)
        ensembled([labels, tmp_path / "oracle"], name, oracle, tmp_path)
        merged, alone = (nib.load(folder / f"{name}.nii.gz") for folder in (tmp_path, labels))
        np.testing.assert_allclose(merged.affine, alone.affine, atol=1e-5)
        differ = np.asarray(merged.dataobj) != np.asarray(alone.dataobj)
        assert differ.sum() <= differ.size // ONE_VOXEL_IN


def test_folder_through_a_cascade_is_nnunets(url: str, results: Path, tmp_path: Path) -> None:
    images, labels = tmp_path / "imagesTs", tmp_path / "labelsPr"
    for name, (shape, spacing) in SCANS.items():
        write_scan(images, name, shape, spacing)
    folder = results / "cascade"
    predicted_one_by_one(folder / "nnUNetTrainer__nnUNetPlans__3d_lowres", images, tmp_path / "lowres")
    second = folder / "nnUNetTrainer__nnUNetPlans__3d_cascade_fullres"
    predicted_one_by_one(second, images, tmp_path / "oracle", tmp_path / "lowres")
    done = batch(url, "cascade", images, labels, "--probabilities")
    assert done.exit_code == 0, done.output
    assert_same_folder(labels, tmp_path / "oracle", list(SCANS))


def test_channels_of_another_grid_end_with_a_reason(url: str, tmp_path: Path) -> None:
    one, _ = write_scan(tmp_path, "one", (13, 11, 9), (1.0, 1.0, 1.5), 2)
    _, other = write_scan(tmp_path, "other", (13, 11, 8), (1.0, 1.0, 1.5), 2)
    mask = tmp_path / "mask.nii.gz"
    command = ["segment", str(one), str(other), "-o", str(mask), "--model", "pair", "--url", url]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2
    assert "other_0001.nii.gz: expected the grid of" in done.output
    assert not mask.exists()


@pytest.fixture
def incomplete(tmp_path: Path) -> Path:
    """Four cases of a model of two channels: complete ones, one without its second, one with a number too high."""
    images = tmp_path / "imagesTs"
    for name in ("a_whole", "b_half", "c_third", "d_whole"):
        write_scan(images, name, (13, 11, 9), (1.0, 1.0, 1.5), 2)
    (images / "b_half_0001.nii.gz").unlink()
    (images / "c_third_0001.nii.gz").rename(images / "c_third_0002.nii.gz")
    return images


def test_missing_channel_is_the_cases_own_error(url: str, incomplete: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labelsPr"
    done = batch(url, "pair", incomplete, labels)
    assert done.exit_code == 1
    outcomes = {row["case"]: row for row in json.loads((labels / "summary.json").read_text())}
    assert {name: row["status"] for name, row in outcomes.items()} == {
        **{"a_whole": "done", "b_half": "failed"},
        **{"c_third": "failed", "d_whole": "done"},
    }
    assert "expected 2 channels, one file each (T1, T2), found 1" in outcomes["b_half"]["error"]
    assert "(_0000 T1, _0001 T2), found c_third_0000.nii.gz, c_third_0002.nii.gz" in outcomes["c_third"]["error"]
    assert sorted(path.name for path in labels.glob("*.nii.gz")) == ["a_whole.nii.gz", "d_whole.nii.gz"]


def test_repaired_folder_is_taken_up_where_it_ended(url: str, incomplete: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labelsPr"
    batch(url, "pair", incomplete, labels)
    before = (labels / "a_whole.nii.gz").stat().st_mtime_ns
    (incomplete / "c_third_0002.nii.gz").rename(incomplete / "c_third_0001.nii.gz")
    (incomplete / "b_half_0000.nii.gz").unlink()
    again = batch(url, "pair", incomplete, labels)
    assert again.exit_code == 0, again.output
    assert "1 segmented, 2 found finished, 0 failed" in again.output
    assert (labels / "a_whole.nii.gz").stat().st_mtime_ns == before


def test_probabilities_asked_for_later_are_added(url: str, tmp_path: Path) -> None:
    images, labels = tmp_path / "imagesTs", tmp_path / "labelsPr"
    write_scan(images, "case", (13, 11, 9), (1.0, 1.0, 1.5), 2)
    assert batch(url, "pair", images, labels).exit_code == 0
    assert not (labels / "case.npz").exists()
    assert "1 segmented" in batch(url, "pair", images, labels, "--probabilities").output
    with np.load(labels / "case.npz") as content:
        np.testing.assert_allclose(content["probabilities"].sum(0), 1, atol=1e-5)
    assert "1 found finished" in batch(url, "pair", images, labels, "--probabilities").output
