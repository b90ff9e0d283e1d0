"""Imported nnU-Net folders on the real server, against nnUNetPredictor on the CPU over the same folders and scans.

The oracle runs with single-precision accumulators; what its own half-precision ones change is recorded beside it.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nnunetv2.postprocessing.remove_connected_components import (
    apply_postprocessing,
    remove_all_but_largest_component_from_segmentation,
)
from numpy.typing import NDArray
from typer.testing import CliRunner

from tests.support.importing import import_nnunet
from tests.support.memory_limits import limit_for
from tests.support.nnunet_folders import (
    LABELS,
    Oracle,
    Training,
    configuration,
    old_architecture,
    single_precision,
    write_folder,
    write_scan,
)
from tests.support.nnunet_folders import architecture as network_architecture
from voxtile import InputError, ModelError, Segmenter
from voxtile.budget import MIB
from voxtile.cli.app import app
from voxtile_server.embedded import EmbeddedServer

ONE_VOXEL_IN = 20_000
"""How many voxels share one that may differ: scores that are equal to float32's rounding have no right label."""
SPREAD = 0.97
"""No label takes more of a scan than this: random networks like some labels better than others."""
PROBABILITY_ERROR = 1e-4
"""Convolutions in another order of sums, then softmax: far above what was seen (1e-6), far below any meaning."""

FULL = configuration((16, 16, 24), (1.5, 1.0, 1.0))
SCHEMES = (
    *("CTNormalization", "ZScoreNormalization", "NoNormalization"),
    *("RescaleTo01Normalization", "RGBTo01Normalization"),
)
SETTINGS = {"serving": {"warm_up": False, "max_batch_size": 2, "threads": 1}}
KEEP_LARGEST = [{"labels_or_regions": [1, 2]}, {"labels_or_regions": np.int64(2), "background_label": 0}]

PRESET = network_architecture(3, "ResidualEncoderUNet", (4, 6, 8))
PRESET["arch_kwargs"] |= {
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
    "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
    "n_blocks_per_stage": [1, 3, 4],
}

TRAININGS = {
    "plain": Training("3d_fullres", {"3d_fullres": FULL}, folds=(0, 1), mirror_axes=(0, 1, 2)),
    "turned": Training(
        "3d_fullres",
        {
            "3d_fullres": configuration(
                (16, 12, 16),
                (1.3, 4.5, 0.9),
                normalization_schemes=list(SCHEMES),
                use_mask_for_norm=[False, True, False, False, False],
            )
        },
        channels=("CT", "T1", "any", "T2", "red"),
        transpose_forward=(1, 0, 2),
        mirror_axes=(1,),
    ),
    "flat": Training("2d", {"2d": configuration((24, 20), (1.2, 0.8))}, folds=("all",), mirror_axes=(0, 1)),
    "regions": Training(
        "3d_fullres",
        {"3d_fullres": {**FULL, "architecture": network_architecture(3, "ResidualEncoderUNet")}},
        labels={"background": 0, "whole": [1, 2, 3], "core": [2, 3], "rim": 3, "ignore": 4},
        regions_class_order=(1, 3, 2),
    ),
    "old": Training(
        "3d_fullres",
        {"3d_fullres": configuration((16, 16, 16), (1.2, 1.2, 1.2), architecture=None, **old_architecture())},
        reader="NibabelIOWithReorient",
        old=True,
    ),
    "cascade": Training(
        "3d_cascade_fullres",
        {
            "3d_lowres": configuration((16, 16, 16), (2.5, 2.2, 2.2), next_stage="3d_cascade_fullres"),
            "3d_fullres": FULL,
            "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        },
    ),
}
TRAININGS["preset"] = Training(
    "3d_lowres", {"3d_lowres": configuration((8, 16, 16), (3.2, 1.9, 1.9), architecture=PRESET)}
)
CHECKPOINTS = {"preset": "checkpoint_best.pth"}
"""The file that is imported, where it is not checkpoint_final.pth."""
SEEDS = {"preset": 8, "plain": 3, "turned": 1, "flat": 5, "regions": 2, "old": 4, "cascade": 6}


@dataclass(frozen=True)
class Served:
    """The trained folders by model name, and the server that serves what was imported from them."""

    folders: dict[str, Path]
    repository: Path
    url: str
    scans: Path


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("nnunet")
    folders = {}
    for name, training in TRAININGS.items():
        results = root / "results" / name
        folders[name] = write_folder(results, training, SEEDS[name])
        if name == "cascade":
            write_folder(results, replace(training, name="3d_lowres"), 7)
        if name == "flat":
            learned = folders[name] / "crossval_results_folds_all"
            learned.mkdir()
            functions = [remove_all_but_largest_component_from_segmentation] * len(KEEP_LARGEST)
            (learned / "postprocessing.pkl").write_bytes(pickle.dumps((functions, KEEP_LARGEST)))
        if name in CHECKPOINTS:
            best = write_folder(root / "results" / "best", training, 9) / "fold_0" / "checkpoint_final.pth"
            best.rename(folders[name] / "fold_0" / CHECKPOINTS[name])
        engines = ["openvino"] if name == "old" else ["onnxruntime"]
        options = {"checkpoint": CHECKPOINTS[name]} if name in CHECKPOINTS else {}
        import_nnunet(folders[name], name, root / "models", engines=engines, settings=SETTINGS, **options)
    with EmbeddedServer(root / "models") as server:
        yield Served(folders, root / "models", server.grpc_url, root / "scans")
        server.kill()


SCANS: list[Any] = [
    pytest.param("plain", (30, 27, 21), (1.1, 0.9, 1.7), "LPS", id="3d_fullres, two folds, mirroring, zero border"),
    pytest.param("plain", (13, 11, 9), (1.0, 1.0, 1.5), "RAS", id="smaller than the patch"),
    pytest.param("turned", (34, 31, 11), (1.0, 1.1, 4.0), "LPS", id="transposed, separate z, every normalisation"),
    pytest.param("flat", (38, 33, 7), (0.9, 1.0, 3.0), "LPS", id="2d, mirroring, learned post-processing"),
    pytest.param("regions", (36, 30, 22), (1.1, 0.9, 1.6), "LPS", id="regions in an order, ResidualEncoderUNet"),
    pytest.param("old", (33, 28, 24), (1.0, 1.3, 1.1), "PIR", id="older plans, a reader that reorients"),
    pytest.param("cascade", (36, 32, 24), (1.1, 0.9, 1.7), "LPS", id="cascade"),
    pytest.param("preset", (36, 33, 19), (1.1, 0.9, 2.9), "SPL", id="3d_lowres, a ResEnc preset, checkpoint_best"),
]


@pytest.mark.parametrize(("model", "shape", "spacing", "codes"), SCANS)
def test_served_labels_are_nnunets(
    served: Served,
    tmp_path: Path,
    record_property: Any,
    model: str,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    codes: str,
) -> None:
    channels = len(TRAININGS[model].channels)
    files = write_scan(tmp_path / "scans", "case", shape, spacing, channels, codes)
    with single_precision():
        wanted, probabilities = predicted(served, model, files, tmp_path / "single")
    halved, _ = predicted(served, model, files, tmp_path / "half")
    with Segmenter(served.url, model, keep_scores=True) as segmenter:
        found = segmenter.segment(files)
    expected, labels = np.asarray(wanted.dataobj), np.asarray(found.mask.dataobj)
    different = int((labels != expected).sum())
    by_half = int((np.asarray(halved.dataobj) != expected).sum())
    record_property("voxels", labels.size)
    record_property("different", different)
    record_property("different by nnU-Net's half precision", by_half)
    print(f"{model}: {different} of {labels.size} voxels differ; nnU-Net's own half precision: {by_half}")
    assert labels.shape == expected.shape
    assert labels.dtype == wanted.get_data_dtype() == np.uint8
    np.testing.assert_allclose(found.mask.affine, wanted.affine, atol=1e-5)
    np.testing.assert_allclose(found.mask.affine, nib.load(files[0]).affine)
    assert np.bincount(expected.ravel()).max() < SPREAD * expected.size, "a scan of one label proves nothing"
    assert different <= labels.size // ONE_VOXEL_IN
    if TRAININGS[model].reader == "SimpleITKIO":
        assert found.scores is not None
        assert np.abs(found.scores.transpose(0, 3, 2, 1) - probabilities).max() <= PROBABILITY_ERROR


STRIPPED: list[Any] = [
    pytest.param("plain", (38, 60, 12), (1.1, 0.9, 1.7), 2, id="3d_fullres, mirroring"),
    pytest.param("turned", (60, 14, 11), (1.0, 1.1, 4.0), 2, id="transposed, separate z"),
    pytest.param("flat", (38, 78, 4), (0.9, 1.0, 3.0), 3, id="2d, mirroring, learned post-processing"),
    pytest.param("regions", (36, 60, 10), (1.1, 0.9, 1.6), 2, id="regions in an order"),
]


@pytest.mark.parametrize(("model", "shape", "spacing", "strips"), STRIPPED)
def test_strips_change_nothing(
    served: Served, tmp_path: Path, model: str, shape: tuple[int, int, int], spacing: Any, strips: int
) -> None:
    files = write_scan(tmp_path / "scans", "case", shape, spacing, len(TRAININGS[model].channels))
    with Segmenter(served.url, model, keep_scores=True, sw_batch_size=1, in_flight=1) as free:
        whole, limit = free.segment(files), limit_for(free, files, strips)
    with Segmenter(served.url, model, keep_scores=True, sw_batch_size=1, max_ram_mib=limit / MIB) as tight:
        cut = tight.segment(files)
    assert (whole.report.strips, cut.report.strips) == (1, strips)
    np.testing.assert_array_equal(cut.labels, whole.labels)
    np.testing.assert_array_equal(cut.scores, whole.scores)
    assert len(np.unique(cut.labels)) > 1


def predicted(served: Served, model: str, files: list[Path], folder: Path) -> tuple[Any, NDArray[np.float32]]:
    """nnU-Net's own labels (nibabel image, learned post-processing applied) and probabilities."""
    folder.mkdir()
    training, previous = TRAININGS[model], None
    if model == "cascade":
        previous = folder / "lowres.nii.gz"
        lowres = served.folders[model].with_name("nnUNetTrainer__nnUNetPlans__3d_lowres")
        Oracle(lowres, training.folds).predict(files, previous)
    output = folder / "labels.nii.gz"
    oracle = Oracle(served.folders[model], training.folds, CHECKPOINTS.get(model, "checkpoint_final.pth"))
    probabilities = oracle.predict(files, output, previous)
    image = nib.load(output)
    learned = served.folders[model] / "crossval_results_folds_all" / "postprocessing.pkl"
    if learned.exists():
        functions, arguments = pickle.loads(learned.read_bytes())
        seg = apply_postprocessing(np.asarray(image.dataobj).transpose(2, 1, 0), functions, arguments)
        assert (seg.transpose(2, 1, 0) != np.asarray(image.dataobj)).any(), "steps that change nothing prove nothing"
        image = nib.Nifti1Image(seg.transpose(2, 1, 0), image.affine, image.header)
    return image, probabilities


def test_command_takes_a_file_a_channel_and_writes_probabilities(served: Served, tmp_path: Path) -> None:
    files = write_scan(tmp_path, "case", (30, 24, 9), (1.0, 1.1, 4.0), 5)
    mask, archive, report = tmp_path / "mask.nii.gz", tmp_path / "case.npz", tmp_path / "report.json"
    arguments = ["segment", *map(str, files), "-o", str(mask), "--model", "turned", "--url", served.url]
    result = CliRunner().invoke(app, [*arguments, "--probabilities", str(archive), "--json", str(report)])
    assert result.exit_code == 0, result.output
    with single_precision():
        wanted, probabilities = predicted(served, "turned", files, tmp_path / "oracle")
    with np.load(archive) as content:
        assert content.files == ["probabilities"]
        assert content["probabilities"].dtype == probabilities.dtype == np.float32
        np.testing.assert_allclose(content["probabilities"], probabilities, atol=PROBABILITY_ERROR)
    np.testing.assert_array_equal(np.asarray(nib.load(mask).dataobj), np.asarray(wanted.dataobj))
    assert json.loads(report.read_text())["changes"] == []


def test_probabilities_of_a_reorienting_reader_lie_as_nnunet_writes_them(served: Served, tmp_path: Path) -> None:
    files = write_scan(tmp_path, "case", (24, 20, 18), (1.0, 1.3, 1.1), 1, "PIR")
    archive = tmp_path / "case.npz"
    arguments = ["segment", str(files[0]), "-o", str(tmp_path / "mask.nii.gz"), "--model", "old", "--url", served.url]
    result = CliRunner().invoke(app, [*arguments, "--probabilities", str(archive)])
    assert result.exit_code == 0, result.output
    with single_precision():
        _, probabilities = predicted(served, "old", files, tmp_path / "oracle")
    with np.load(archive) as content:
        np.testing.assert_allclose(content["probabilities"], probabilities, atol=PROBABILITY_ERROR)


def test_probabilities_go_to_an_npz_file(served: Served, tmp_path: Path) -> None:
    files = write_scan(tmp_path, "case", (13, 11, 9), (1.0, 1.0, 1.5))
    arguments = ["segment", str(files[0]), "-o", str(tmp_path / "m.nii.gz"), "--model", "plain", "--url", served.url]
    result = CliRunner().invoke(app, [*arguments, "--probabilities", str(tmp_path / "p.npy")])
    assert result.exit_code == 2
    assert ".npz" in result.output
    assert not (tmp_path / "m.nii.gz").exists()


def test_learned_steps_can_be_left_out_and_are_then_named(served: Served, tmp_path: Path) -> None:
    files = write_scan(tmp_path, "case", (38, 33, 7), (0.9, 1.0, 3.0))
    with Segmenter(served.url, "flat") as one, Segmenter(served.url, "flat", postprocessing=False) as other:
        done, left = one.segment(files), other.segment(files)
    assert (done.labels != left.labels).any()
    assert done.report.changes == []
    assert left.report.changes == ["learned post-processing off"]


def test_a_missing_channel_is_refused_by_name(served: Served, tmp_path: Path) -> None:
    files = write_scan(tmp_path, "case", (13, 11, 9), (1.0, 1.0, 4.0), 4)
    with (
        Segmenter(served.url, "turned") as segmenter,
        pytest.raises(InputError, match=r"one file for each channel \(.*_0004 red\), found case_0000"),
    ):
        segmenter.segment(files)


def test_second_stage_asks_for_images_alone_and_needs_its_first(served: Served) -> None:
    with Segmenter(served.url, "cascade") as segmenter:
        assert segmenter.card.input_channels == ("CT",)
        assert segmenter.card.channels == ("CT", "previous stage: 1", "previous stage: 2")
        assert segmenter.previous is not None
        assert segmenter.previous.card.name == segmenter.card.previous_stage == "cascade_3d_lowres"


def test_empty_tiles_cannot_be_skipped(served: Served, tmp_path: Path) -> None:
    files = write_scan(tmp_path, "case", (13, 11, 9), (1.0, 1.0, 1.5))
    with Segmenter(served.url, "plain", skip_empty=True) as segmenter, pytest.raises(ModelError, match="skip-empty"):
        segmenter.segment(files)


def test_every_fold_has_its_certificate_and_the_card_all_of_them(served: Served) -> None:
    with Segmenter(served.url, "plain") as segmenter:
        card = segmenter.card
    assert sorted(card.certificates) == ["onnxruntime"]
    for entry in ("plain_fold_0_onnxruntime", "plain_fold_1_onnxruntime", "plain_mean_onnxruntime"):
        certificate = json.loads((served.repository / entry / "1" / "certificate.json").read_text())
        assert certificate["accepted"] is True
        assert certificate["model"] in entry
    assert card.labels[2].value == LABELS["two"]
