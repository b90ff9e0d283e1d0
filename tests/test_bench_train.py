"""The benchmark's trained stand-ins: they learn, they are used, and the tables say what they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bench import train
from bench.networks import TISSUES, nnunet_network, stand_in, trained_steps
from bench.nnunet_folder import brain_folder
from bench.workloads import how_taught
from voxtile_build.importers.nnunet import models_of

WIDTHS = (4, 8, 8)
ROI = (32, 32, 32)
STEPS = 100


@pytest.fixture(scope="module")
def example() -> train.Example:
    """Three grey levels in blocks, and noise."""
    rng = np.random.default_rng(1)
    labels = np.kron(rng.integers(0, 3, (6, 5, 7)), np.ones((8, 8, 8))).astype(np.uint8)
    values = labels - 1 + 0.1 * rng.standard_normal(labels.shape)
    return train.Example(values.astype(np.float32), labels, len(TISSUES))


@pytest.fixture(scope="module")
def network(example: train.Example) -> torch.nn.Module:
    return train.train(example, STEPS, WIDTHS, patch=32)


@pytest.fixture
def data(network: torch.nn.Module, tmp_path: Path) -> Path:
    """A benchmark's folder of data in which the brain's stand-in has been trained."""
    train.keep(network, stand_in(tmp_path, "brain", WIDTHS), {"steps": STEPS, "seconds": 1})
    return tmp_path


def agreement(network: torch.nn.Module, example: train.Example) -> float:
    with torch.inference_mode():
        found = network(torch.from_numpy(example.values)[None, None]).argmax(1)[0].numpy()
    return float((found == example.labels).mean())


@pytest.mark.usefixtures("one_thread")
def test_it_learns(network: torch.nn.Module, example: train.Example) -> None:
    untrained = train.train(example, 1, WIDTHS, patch=32)
    assert agreement(network, example) > agreement(untrained, example) + 0.2


def test_what_was_trained_is_what_is_measured_and_said(data: Path, network: torch.nn.Module) -> None:
    assert trained_steps(data, "brain", WIDTHS) == STEPS
    assert how_taught(data, "brain", WIDTHS) == f"{STEPS} steps of training on this scan"
    folder = brain_folder(data, WIDTHS, ROI)
    x = torch.randn(1, 1, *ROI)
    with torch.inference_mode():
        wanted = network(x)
        for loaded in (nnunet_network(data, "brain", WIDTHS, ROI), models_of(folder, "one")[0].members[0].load()):
            torch.testing.assert_close(loaded(x), wanted)


def test_without_training_it_says_so(tmp_path: Path) -> None:
    assert trained_steps(tmp_path, "ct", WIDTHS) is None
    assert how_taught(tmp_path, "ct", WIDTHS) == "weights not trained"


def test_weights_that_were_cut_off_are_not_used(data: Path) -> None:
    """They are told of last."""
    stand_in(data, "brain", WIDTHS).with_suffix(".json").unlink()
    assert trained_steps(data, "brain", WIDTHS) is None


def test_every_class_is_drawn_although_one_is_rare() -> None:
    labels = np.zeros((40, 40, 40), np.uint8)
    labels[3, 30, 20] = 1
    example = train.Example(np.zeros(labels.shape, np.float32), labels, 2)
    places = [np.flatnonzero(labels == label) for label in range(2)]
    rng = np.random.default_rng(0)
    held = [bool(train._patch(example, places, 16, rng)[1].any()) for _ in range(40)]
    assert 10 < sum(held) < 40
