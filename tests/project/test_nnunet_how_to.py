"""docs/how-to/nnunet.md: every fenced command is run, in order, on a generated results folder."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.support import pages
from tests.support.nnunet_folders import Oracle, Training, configuration, single_precision, write_folder, write_scan

PAGE = pages.ROOT / "docs" / "how-to" / "nnunet.md"
TRAINING = Training("3d_fullres", {"3d_fullres": configuration((16, 16, 16), (1.5, 1.0, 1.0))}, folds=(0, 1))


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_page_from_results_folder_to_masks(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "nnUNet_results" / "Dataset042_Mine", TRAINING, seed=3)
    write_folder(tmp_path / "nnUNet_results" / "Dataset042_Mine", replace(TRAINING, name="3d_lowres", configurations={
        "3d_lowres": TRAINING.configurations["3d_fullres"]
    }))  # fmt: skip
    files = write_scan(tmp_path / "imagesTs", "case", (24, 20, 17), (1.1, 0.9, 1.7))
    text = PAGE.read_text(encoding="utf-8")
    settings = pages.files(text)
    assert list(settings) == ["settings.toml", "reduced.toml"]
    for name, content in settings.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    install, *rest = pages.commands(text)
    name, version = install[-1].split("==")
    assert install[:3] == ["pip", "install", "--no-deps"]
    assert metadata.version(name) == version, "the page pins what the tests run with"
    serving = next(index for index, command in enumerate(rest) if command[0] == "voxtile-server")
    for command in rest[:serving]:
        pages.run(command, tmp_path)
    with pages.served(rest[serving], tmp_path) as address:
        for command in rest[serving + 1 :]:
            pages.run(command, tmp_path, address)
    with single_precision():
        probabilities = Oracle(folder, TRAINING.folds).predict(files, tmp_path / "oracle.nii.gz")
    expected = np.asarray(nib.load(tmp_path / "oracle.nii.gz").dataobj)
    for mask in ("case.nii.gz", "labelsPr/case.nii.gz"):
        assert (np.asarray(nib.load(tmp_path / mask).dataobj) != expected).sum() <= expected.size // 20_000
    with np.load(tmp_path / "case.npz") as content:
        np.testing.assert_allclose(content["probabilities"], probabilities, atol=1e-4)


def test_page_names_options_and_entries_that_exist() -> None:
    text = PAGE.read_text(encoding="utf-8")
    build = subprocess.run(
        [sys.executable, "-m", "voxtile_build", "nnunet", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for option in ("--folds", "--checkpoint", "--engines", "--configuration", "--settings"):
        assert option in text
        assert option in build
