"""The promise on a real brain: the trained network through the real server against MONAI over PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference
from numpy.typing import NDArray

from models.training.mni152 import fetch_mni152
from tests.support.parity import FLIPPED, PROBABILITY_ERROR
from voxtile import RemoteNetwork, Segmenter
from voxtile_build.build import build
from voxtile_build.importers.network import load_network
from voxtile_build.spec.spec import load_spec
from voxtile_server.embedded import EmbeddedServer

SPEC = Path(__file__).parents[2] / "models/brain-unet.toml"
ROI = (64, 64, 64)
CROP = np.s_[40:141, 60:177, 70:121]
"""An odd shape, smaller than the ROI along one axis."""
TISSUE_ML = {"grey matter": (900, 1300), "white matter": (500, 800)}
"""What an adult's brain holds, in millilitres."""


@pytest.fixture(scope="module")
def brain(tmp_path_factory: pytest.TempPathFactory) -> nib.Nifti1Image:
    return nib.load(fetch_mni152(tmp_path_factory.mktemp("mni152"))["t1"])


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    repository = tmp_path_factory.mktemp("brain") / "model_repository"
    repository.mkdir()
    build(load_spec(SPEC), repository)
    with EmbeddedServer(repository) as server:
        yield server.grpc_url
        server.kill()


def normalised(image: nib.Nifti1Image) -> torch.Tensor:
    values = np.asarray(image.dataobj, np.float64)
    inside = values[values != 0]
    return torch.from_numpy(((values - inside.mean()) / inside.std()).astype(np.float32))[None, None]


def by_monai(x: torch.Tensor, predictor: object, overlap: float, mode: str, **changes: object) -> NDArray[np.float32]:
    with torch.no_grad():
        logits = sliding_window_inference(x, ROI, 4, predictor, overlap=overlap, mode=mode, **changes)
    return torch.softmax(logits, 1)[0].numpy()


class Replayed:
    """A network that computes each sequence of windows once: other weights of the same windows need no new run."""

    def __init__(self) -> None:
        self.network = load_network(load_spec(SPEC)).eval()
        self.known: dict[object, list[torch.Tensor]] = {}

    def of(self, key: object) -> Callable[[torch.Tensor], torch.Tensor]:
        if key in self.known:
            answers = iter(self.known[key])
            return lambda _: next(answers).clone()
        made = self.known[key] = []

        def compute(x: torch.Tensor) -> torch.Tensor:
            made.append(self.network(x))
            return made[-1].clone()

        return compute


@pytest.fixture(scope="module")
def network() -> Replayed:
    return Replayed()


@pytest.mark.parametrize("part", ["whole", "crop"])
@pytest.mark.parametrize("overlap", [0.25, 0.5])
@pytest.mark.parametrize("mode", ["constant", "gaussian"])
def test_equals_monai_on_the_brain(
    brain: nib.Nifti1Image, url: str, network: Replayed, part: str, overlap: float, mode: str
) -> None:
    image = brain if part == "whole" else brain.slicer[CROP]
    with Segmenter(url, "brain-unet", overlap=overlap, mode=mode, keep_scores=True) as segmenter:
        result = segmenter.segment(image)
    expected = by_monai(normalised(image), network.of((part, overlap)), overlap, mode)
    assert result.scores is not None
    found = torch.softmax(torch.from_numpy(result.scores), 0).numpy()
    assert np.abs(found - expected).max() <= PROBABILITY_ERROR
    assert (result.labels != expected.argmax(0)).mean() <= FLIPPED


def test_monais_own_windows_through_the_server_give_the_same(
    brain: nib.Nifti1Image, url: str, network: Replayed
) -> None:
    image = brain.slicer[CROP]
    expected = by_monai(normalised(image), network.of(("crop", 0.5)), 0.5, "gaussian")
    values = np.asarray(image.dataobj, np.float64)
    inside = values[values != 0]
    statistics = np.array([[inside.mean(), inside.std()]], np.float32)
    x = torch.from_numpy(values.astype(np.float32))[None, None]
    with RemoteNetwork(url, "brain-unet", statistics=statistics) as remote:
        found = by_monai(x, remote, 0.5, "gaussian", cval=remote.card.input.padding)
    assert np.abs(found - expected).max() <= PROBABILITY_ERROR
    assert (found.argmax(0) != expected.argmax(0)).mean() <= FLIPPED


def test_tissues_have_the_volumes_of_a_brain(brain: nib.Nifti1Image, url: str) -> None:
    with Segmenter(url, "brain-unet") as segmenter:
        labels = segmenter.segment(brain).report.labels
    for name, (low, high) in TISSUE_ML.items():
        assert low < labels[name].ml < high
