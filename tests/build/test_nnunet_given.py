"""What nnU-Net users give in place of a trained folder is taken, or named as what it is with what to do."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.nnunet_folders import Training, configuration, write_folder
from voxtile_build.cli.commands import main
from voxtile_build.cli.options import join_values
from voxtile_build.errors import NetworkError, SourceError, SpecError
from voxtile_build.importers.nnunet.models import models_of
from voxtile_build.importers.nnunet.zipped import RATIO
from voxtile_build.spec.name import ALLOWED, INNER, checked_name, nearest_name

SMALL = Training("2d", {"2d": configuration((16, 12), (1.0, 1.0))}, folds=(0, 1))
FULL = configuration((8, 8, 8), (1.0, 1.0, 1.0))
NAME = "nnUNetTrainer__nnUNetPlans__2d"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "nnUNet_results" / "Dataset042_Mine", SMALL)


def refused(path: Path, message: str, kind: type[Exception] = SourceError, **options: object) -> str:
    with pytest.raises(kind, match=message) as caught:
        models_of(path, "m", **options)  # type: ignore[arg-type]
    text = str(caught.value)
    assert str(path) in text, "the path that was given is named, and none of ours"
    assert "voxtile-nnunet-" not in text
    assert "\n" not in text
    return text


# The command line ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "joined"),
    [
        ("nnunet F --folds 0 1 2 --name m", "nnunet F --folds 0,1,2 --name m"),
        ("nnunet -f 0 1 F --name m", "nnunet -f 0,1 F --name m"),
        ("nnunet --folds all F", "nnunet --folds all F"),
        ("nnunet F --folds 0,1 2", "nnunet F --folds 0,1,2"),
        ("nnunet F --folds fold_0 fold_1", "nnunet F --folds fold_0,fold_1"),
        ("nnunet F --folds 0 --folds 1 2", "nnunet F --folds 0 --folds 1,2"),
        ("spec --engines openvino onnxruntime a.toml", "spec --engines openvino,onnxruntime a.toml"),
        ("nnunet --name --folds 0 1", "nnunet --name --folds 0,1"),
        ("profile m --runs 3 4", "profile m --runs 3 4"),
        ("nnunet F --folds", "nnunet F --folds"),
    ],
)
def test_values_of_one_option_may_stand_side_by_side(given: str, joined: str) -> None:
    assert join_values(given.split()) == joined.split()


def test_the_command_takes_folds_and_options_as_nnunet_does(folder: Path, tmp_path: Path) -> None:
    for fold in (0, 1):
        (folder / f"fold_{fold}" / "checkpoint_final.pth").rename(folder / f"fold_{fold}" / "checkpoint_best.pth")
    settings = tmp_path / "settings.toml"
    settings.write_text("[serving]\nwarm_up = false\nmax_batch_size = 1\nthreads = 1\n")
    words = [
        "nnunet",
        str(folder.parent),
        "--name",
        "m",
        "--repository",
        str(tmp_path / "r"),
        "--settings",
        str(settings),
    ]
    options = ["-c", "2d", "-f", "1", "0", "-chk", "checkpoint_best.pth", "--engines", "onnxruntime"]
    assert main([*words, *options]) == 0
    entries = sorted(path.name for path in (tmp_path / "r").iterdir() if path.is_dir())
    assert entries == ["m", "m_fold_0_onnxruntime", "m_fold_1_onnxruntime", "m_mean_onnxruntime"]


# Names --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("Dataset042_Mine", "dataset042_mine"),
        ("liver.v2", "liver-v2"),
        ("Größe Niere", "groe-niere"),
        ("-mine_", "mine"),
        ("../etc/passwd", "etc-passwd"),
        ("Brain_OpenVINO", "brain-openvino"),
        ("mine_fold_0", "mine-fold-0"),
        ("脑", "model"),
        ("", "model"),
        ("m\n", "m"),
    ],
)
def test_a_name_that_is_not_allowed_is_answered_with_the_nearest_one(folder: Path, name: str, nearest: str) -> None:
    assert nearest_name(name) == nearest == checked_name(nearest)
    with pytest.raises(SpecError, match=f"name: .*'{nearest}' will do"):
        models_of(folder, name, folds=["0"])


def test_the_nearest_name_of_any_text_is_allowed_and_that_of_an_allowed_one_itself() -> None:
    random = np.random.default_rng(5)
    letters = np.array([*"aZ09_-. äß/\n", "_openvino", "_mean", "_fold_1"])
    for _ in range(500):
        name = "".join(random.choice(letters, random.integers(0, 6)))
        nearest = checked_name(nearest_name(name))
        assert nearest_name(nearest) == nearest or nearest[-1] in "-_", name
        if ALLOWED.fullmatch(name) and not INNER.search(name) and name[-1] not in "-_":
            assert nearest == name


# Folders ------------------------------------------------------------------------------------------------------------


def test_one_fold_and_a_checkpoint_name_the_folder_and_the_options(folder: Path) -> None:
    refused(folder / "fold_1", rf"one of its folds; give the folder above it, {folder}, with --folds 1$")
    message = rf"one checkpoint; give the folder {folder} with --folds 0 --checkpoint checkpoint_final.pth"
    refused(folder / "fold_0" / "checkpoint_final.pth", message)
    refused(folder / "plans.json", rf"one of its files; give its folder, {folder}$")


def test_folds_with_another_checkpoint_alone_name_it_and_the_option(folder: Path) -> None:
    for fold in (0, 1):
        (folder / f"fold_{fold}" / "checkpoint_final.pth").rename(folder / f"fold_{fold}" / "checkpoint_best.pth")
    text = refused(folder, "training has not ended, ?; to take that, say --checkpoint checkpoint_best.pth$")
    assert "found checkpoint_best.pth alone in fold_0, fold_1" in text
    (model,) = models_of(folder, "m", checkpoint="checkpoint_best.pth")
    assert [fold.name for fold in model.folds] == ["m_fold_0", "m_fold_1"]
    refused(folder, "found checkpoint_best.pth alone .* say --checkpoint checkpoint_best.pth$", checkpoint="mine.pth")
    shutil.rmtree(folder / "fold_0")
    shutil.rmtree(folder / "fold_1")
    refused(folder, "found none; train it, or give another folder$")


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def results(root: Path) -> None:
    for name in ("Dataset001_A", "Dataset002_B"):
        write_folder(root / name, SMALL)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (results, r"found results of 2 data sets \(Dataset001_A, Dataset002_B\); give the folder of one"),
        (
            lambda root: touch(root / "imagesTr" / "case_0000.nii.gz"),
            "found raw data, .*give its results, nnUNet_results",
        ),
        (lambda root: touch(root / "nnUNetPlans.json"), "found preprocessed data, .*give its results, nnUNet_results"),
        (lambda root: touch(root / "gt_segmentations" / "a.nii.gz"), "found preprocessed data"),
        (lambda root: touch(root / "plans.pkl"), "a model of nnU-Net v1, .*train it with nnU-Net v2, or export"),
        (lambda root: touch(root / "nnUNetTrainerV2__nnUNetPlansv2.1" / "plans.pkl"), "a model of nnU-Net v1"),
        (lambda root: touch(root / "fold_0" / "model_final_checkpoint.model"), "a model of nnU-Net v1"),
        (lambda root: touch(root / "configs" / "inference.json"), "a MONAI bundle; give it to voxtile-build bundle"),
        (
            lambda root: touch(root / "fold_0" / "checkpoint_final.pth"),
            r"folds without plans.json and dataset.json; copy",
        ),
        (lambda root: root.mkdir(), "found none; give the folder TRAINER__PLANS__CONFIGURATION"),
        (lambda root: None, "found no such folder; check its path"),
    ],
)
def test_other_folders_are_named_as_what_they_are(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    make(tmp_path / "given")
    refused(tmp_path / "given", message)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model_final_checkpoint.model", "a checkpoint of nnU-Net v1"),
        ("mine.tar.gz", "an archive; unpack it"),
        ("notes.txt", "a file; give the folder"),
    ],
)
def test_other_files_are_named_as_what_they_are(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).write_text("text")
    refused(tmp_path / name, message)


def test_several_models_are_listed_and_configuration_chooses(folder: Path) -> None:
    write_folder(folder.parent, Training("3d_fullres", {"3d_fullres": FULL}))
    refused(folder.parent, f"found {NAME}, nnUNetTrainer__nnUNetPlans__3d_fullres; .*choose one by --configuration$")
    (model,) = models_of(folder.parent, "m", configuration="2d")
    assert model.spec.tiling.roi_size == (16, 12)


# Zip files ----------------------------------------------------------------------------------------------------------


def zipped(folder: Path, path: Path, below: Path) -> Path:
    """What nnUNetv2_export_model_to_zip writes: every file by its name below nnUNet_results."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(below))
    return path


def test_an_exported_zip_file_is_the_model_in_it(folder: Path, tmp_path: Path) -> None:
    file = zipped(folder, tmp_path / "exported.zip", folder.parents[1])
    (found,), (wanted,) = models_of(file, "m"), models_of(folder, "m")
    assert found.spec == wanted.spec
    for one, other in zip(found.folds, wanted.folds, strict=True):
        assert one.weights_sha256 == other.weights_sha256
        ours, theirs = one.load().state_dict(), other.load().state_dict()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_zip_file_of_a_cascade_holds_both_stages(tmp_path: Path) -> None:
    settings = {"3d_lowres": FULL, "3d_cascade_fullres": {**FULL, "previous_stage": "3d_lowres"}}
    for name in settings:
        write_folder(tmp_path / "Dataset001_A", Training(name, settings))
    file = zipped(tmp_path / "Dataset001_A", tmp_path / "exported.zip", tmp_path)
    found = models_of(file, "m", configuration="3d_cascade_fullres")
    assert [model.spec.name for model in found] == ["m_3d_lowres", "m"]
    refused(file, "found nnUNetTrainer__nnUNetPlans__3d_cascade_fullres, nnUNetTrainer__nnUNetPlans__3d_lowres; give")


def test_errors_of_a_zip_file_name_it_and_not_where_it_was_unpacked(folder: Path, tmp_path: Path) -> None:
    plans = json.loads((folder / "plans.json").read_text())
    plans["configurations"]["2d"]["architecture"]["arch_kwargs"]["n_stages"] = 7
    (folder / "plans.json").write_text(json.dumps(plans))
    for fold in (0, 1):
        file = folder / f"fold_{fold}" / "checkpoint_final.pth"
        content = torch.load(file, weights_only=False)
        content["init_args"].pop("plans")
        torch.save(content, file)
    file = zipped(folder, tmp_path / "exported.zip", folder.parents[1])
    refused(file, "expected its checkpoint", folds=["7"])
    (model,) = models_of(file, "m")
    with pytest.raises(NetworkError, match=f"^{file}/Dataset042_Mine/{NAME}/plans.json"):
        model.folds[0].load()


@pytest.mark.parametrize(
    "name",
    [f"../{NAME}/plans.json", f"/{NAME}/plans.json", f"Dataset001_A/../../{NAME}/plans.json", f"..\\{NAME}/plans.json"],
)
def test_no_member_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    file = tmp_path / "inner" / "exported.zip"
    file.parent.mkdir()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, "{}")
    refused(file, "expected a zip file of nnUNetv2_export_model_to_zip")
    assert sorted(tmp_path.rglob("*")) == [file.parent, file]


def test_a_zip_file_that_unpacks_to_more_than_weights_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "exported.zip"
    monkeypatch.setattr("voxtile_build.importers.nnunet.zipped.SPARE_BYTES", 0)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{NAME}/fold_0/checkpoint_final.pth", bytes(RATIO << 20))
    refused(file, "expected weights, found 20 MiB in 0 MiB of file")


def test_a_damaged_zip_file_and_one_of_two_data_sets_are_refused(folder: Path, tmp_path: Path) -> None:
    file = zipped(folder, tmp_path / "exported.zip", folder.parents[1])
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)
    refused(file, "found a damaged one")
    write_folder(folder.parents[1] / "Dataset043_Other", SMALL)
    both = zipped(folder.parents[1], tmp_path / "both.zip", folder.parents[1])
    refused(both, "expected the models of one data set, found those of Dataset042_Mine/, Dataset043_Other/; unpack it")
