"""The benchmark's trained stand-ins: they learn, they are used, and the tables say what they are."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import density_network, lessons, networks, scans, train
from bench.entries import nnunet_model
from bench.networks import TISSUES, nnunet_network, stand_in, trained_steps
from bench.nnunet_folder import brain_folder, ct_folder
from bench.settings import Settings
from bench.workloads import how_taught, scanned
from voxtile_build.evaluation.calibration import calibrate
from voxtile_build.evaluation.samples import gather_scans
from voxtile_build.importers.nnunet.models import models_of

WIDTHS = (4, 8, 8)
ROI = (32, 32, 32)
STEPS = 100


@pytest.fixture(scope="module")
def example() -> lessons.Example:
    """Three grey levels in blocks, and noise."""
    rng = np.random.default_rng(1)
    labels = np.kron(rng.integers(0, 3, (6, 5, 7)), np.ones((8, 8, 8))).astype(np.uint8)
    values = labels - 1 + 0.1 * rng.standard_normal(labels.shape)
    return lessons.Example(values.astype(np.float32), labels, len(TISSUES))


@pytest.fixture(scope="module")
def network(example: lessons.Example) -> torch.nn.Module:
    return taught(example, STEPS)


def taught(example: lessons.Example, steps: int) -> torch.nn.Module:
    network = networks.seeded(lambda: networks.plain_conv_unet(WIDTHS, example.classes))
    return train.train(network, lessons.varied_patches(example, 32), steps)


@pytest.fixture
def data(network: torch.nn.Module, tmp_path: Path) -> Path:
    """A benchmark's folder of data in which the brain's stand-in has been trained."""
    train.keep(network, stand_in(tmp_path, "brain", WIDTHS), {"steps": STEPS, "seconds": 1})
    return tmp_path


def agreement(network: torch.nn.Module, example: lessons.Example) -> float:
    with torch.inference_mode():
        found = network(torch.from_numpy(example.values)[None, None]).argmax(1)[0].numpy()
    return float((found == example.labels).mean())


@pytest.mark.usefixtures("one_thread")
def test_it_learns(network: torch.nn.Module, example: lessons.Example) -> None:
    untrained = taught(example, 1)
    assert agreement(network, example) > agreement(untrained, example) + 0.2


def test_what_was_trained_is_what_is_measured_and_said(data: Path, network: torch.nn.Module) -> None:
    assert trained_steps(data, "brain", WIDTHS) == STEPS
    assert how_taught(data, "brain", WIDTHS) == f"{STEPS} steps of training on this scan"
    folder = brain_folder(data, WIDTHS, ROI)
    x = torch.randn(1, 1, *ROI)
    with torch.inference_mode():
        wanted = network(x)
        for loaded in (nnunet_network(data, "brain", WIDTHS, ROI), models_of(folder, "one")[0].folds[0].load()):
            torch.testing.assert_close(loaded(x), wanted)


def test_without_training_it_says_so(tmp_path: Path) -> None:
    assert trained_steps(tmp_path, "brain", WIDTHS) is None
    assert how_taught(tmp_path, "brain", WIDTHS) == "weights not trained"
    assert how_taught(tmp_path, "chest", WIDTHS) == "weights set and fitted"


def test_weights_that_were_cut_off_are_not_used(data: Path) -> None:
    """They are told of last."""
    stand_in(data, "brain", WIDTHS).with_suffix(".json").unlink()
    assert trained_steps(data, "brain", WIDTHS) is None


def test_every_class_is_drawn_although_one_is_rare() -> None:
    labels = np.zeros((40, 40, 40), np.uint8)
    labels[3, 30, 20] = 1
    example = lessons.Example(np.zeros(labels.shape, np.float32), labels, 2)
    patches = lessons.varied_patches(example, 16)
    held = [bool(next(patches)[1].any()) for _ in range(40)]
    assert 10 < sum(held) < 40


def test_the_cts_tiles_are_those_that_nnunet_lays_in_turn() -> None:
    from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window

    shape, roi = (20, 45, 33), (16, 16, 24)
    values = np.arange(np.prod(shape)).reshape(shape).astype(np.float32)
    labels = (np.arange(np.prod(shape)).reshape(shape) % 25).astype(np.uint8)
    starts = compute_steps_for_sliding_window(shape, roi, 0.5)
    wanted = [tuple(slice(s, s + r) for s, r in zip(corner, roi, strict=True)) for corner in itertools.product(*starts)]
    tiles = lessons.tiles_in_turn(lessons.Example(values, labels, 25), roi)
    for where in [*wanted, wanted[0]]:
        found, truth = next(tiles)
        np.testing.assert_array_equal(found[0, 0].numpy(), values[where])
        np.testing.assert_array_equal(truth[0].numpy(), labels[where])


def prepared_by_nnunet(folder: Path, scan: Path) -> np.ndarray:
    """[channel, z, y, x], by its own preprocessor."""
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = PlansManager(str(folder / "plans.json"))
    dataset = json.loads((folder / "dataset.json").read_text())
    configuration = plans.get_configuration("3d_fullres")
    return np.asarray(DefaultPreprocessor(verbose=False).run_case([str(scan)], None, plans, configuration, dataset)[0])


def test_the_ct_is_learned_as_nnunet_prepares_it(tmp_path: Path) -> None:
    """Its own preprocessor gives the same values, and the labels lie where the values say."""
    roi = (16, 16, 16)
    example = lessons.chest(density_network.SCAN, roi)
    values = prepared_by_nnunet(ct_folder(tmp_path, WIDTHS, roi), scans.ct_scan(tmp_path, density_network.SCAN))
    assert values.shape[1:] == example.labels.shape
    np.testing.assert_allclose(example.values[None], values, atol=1e-4)
    mean, spread = (density_network.fingerprint(roi)[name] for name in ("mean", "std"))
    for label in range(2, scans.CT_LABELS):
        inside = example.values[example.labels == label]
        assert abs(np.median(inside) * spread + mean - scans._densities()[label]) < 1


def test_nnunet_entries_are_calibrated_on_values_as_they_travel(tmp_path: Path) -> None:
    """Normalised, on the network's grid, in nnU-Net's order of axes: raw densities would give int8 other ranges."""
    folder = ct_folder(tmp_path, WIDTHS, (16, 16, 16))
    scan = scans.ct_scan(tmp_path, (90, 80, 70))
    settings = Settings(tmp_path, quick=True, tiny=True, device="cpu", with_compile=False, sections=("nnunet",))
    chosen = scanned(nnunet_model(folder, "ct", settings), scan).spec
    for found in (gather_scans(chosen)[0], calibrate(chosen).scans[0]):
        np.testing.assert_allclose(found.volume, prepared_by_nnunet(folder, scan), atol=1e-4)
        assert found.spacing == (density_network.MODEL_SPACING,) * 3


def test_the_rate_rises_and_then_falls_to_nothing() -> None:
    rates = [train._share(step, 150, 20) for step in range(151)]
    assert rates[0] < 0.1
    assert np.argmax(rates) in (18, 19)
    assert max(rates) > 0.95
    assert np.all(np.diff(rates[20:]) < 0)
    assert rates[-1] < 1e-9
    assert train._share(0, 150, 0) == 1
