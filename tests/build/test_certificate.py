"""A certificate says what was measured, and refuses an engine that is not as good as it should be."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.inferers.utils import sliding_window_inference
from monai.transforms import NormalizeIntensity
from numpy.typing import NDArray

from tests.support.build_specs import Linear, fields, spec, tiny_unet
from voxtile.io.stored import PREPARED_MARK
from voxtile.outputs.prepared_files import DIGITS
from voxtile_build.arrays import Runner
from voxtile_build.certificate.certificate import (
    Reference,
    certify,
    limits_of,
    make_reference,
    require_accepted,
    short_form,
    violations,
)
from voxtile_build.certificate.limits import MAX_LOGIT_ERROR, MAX_SCORE_ERROR
from voxtile_build.engines import find_engine
from voxtile_build.engines.base import Compiled, Engine
from voxtile_build.errors import AcceptanceError, ScanError
from voxtile_build.evaluation.metrics import changed_voxels, dice, masks, probabilities
from voxtile_build.evaluation.phantom import phantom, phantom_shape
from voxtile_build.evaluation.samples import as_input, gather_scans, intensity_statistics
from voxtile_build.evaluation.tiles import cut_tiles
from voxtile_build.evaluation.whole_scan import segment, torch_runner
from voxtile_build.graph.wrapper import Wrapper
from voxtile_build.spec.input import PADDING
from voxtile_build.spec.spec import Spec, parse_spec

Array = NDArray[Any]
ENGINE: Engine = find_engine("onnxruntime")
HASHES = {"weights": "a" * 64, "onnx": "b" * 64}


def wrapper_of(chosen: Spec) -> Wrapper:
    channels = len(chosen.input.channels)
    return Wrapper(tiny_unet(channels=channels), chosen).eval()


def certificate(chosen: Spec, run: Runner, reference: Reference, folder: Path) -> Any:
    file = folder / "model.onnx"
    file.write_bytes(b"engine")
    return certify(chosen, ENGINE, Compiled((file,), "fp32", run), reference, HASHES)


@pytest.fixture(scope="module")
def reference() -> Reference:
    return make_reference(wrapper_of(spec()), spec())


def faulty(change: Any) -> Runner:
    """PyTorch itself, its scores changed: an engine whose error is known."""
    run = torch_runner(wrapper_of(spec()))

    def wrong(inputs: Mapping[str, Array]) -> Array:
        return np.asarray(change(run(inputs)))

    return wrong


# What is measured on


@pytest.mark.parametrize("changes", [{}, {"tiling": {"roi_size": [16, 8], "slice_axis": 0}}])
def test_the_phantom_has_no_symmetry_and_is_always_the_same(changes: dict[str, Any]) -> None:
    chosen = spec(**changes)
    volume = phantom(chosen)
    assert np.array_equal(volume, phantom(chosen))
    assert volume.shape[1:] == phantom_shape(chosen)
    assert all(size % 2 for size in volume.shape[1:])
    for axes in ((1,), (2,), (3,), (1, 2), (2, 3), (1, 3), (1, 2, 3)):
        assert not np.allclose(volume, np.flip(volume, axes), atol=0.2 * volume.max())


def test_the_phantom_is_larger_than_the_roi_and_smaller_along_one_axis() -> None:
    larger = [size > roi for size, roi in zip(phantom_shape(spec()), spec().tiling.roi_size, strict=True)]
    assert larger == [True, True, False]


@pytest.mark.parametrize(
    ("rule", "low", "high"),
    [
        ({"rule": "none"}, 0, 2),
        ({"rule": "range", "a_min": -1000.0, "a_max": 1000.0}, -1000, 1500),
        ({"rule": "fixed", "mean": [100.0], "std": [50.0]}, 0, 400),
        ({"rule": "zscore"}, 0, 2000),
    ],
)
def test_the_phantom_lies_where_the_rule_expects_values(rule: dict[str, Any], low: float, high: float) -> None:
    volume = phantom(spec(input={"intensity": rule}))
    assert low <= volume.min() < volume.max() <= high


def test_tiles_are_the_scans_own_voxels_and_padding_where_there_are_none() -> None:
    chosen = spec(input={"dtype": "int16", "intensity": {"rule": "zscore"}})
    scan = gather_scans(chosen)[0]
    tiles = {tile.name: tile.roi for tile in cut_tiles(scan, chosen)}
    assert set(tiles) == {"first corner", "middle", "last corner", "half outside", "zeros"}
    x, y, z = (min(size, roi) for size, roi in zip(scan.volume.shape[1:], chosen.tiling.roi_size, strict=True))
    np.testing.assert_array_equal(tiles["first corner"][:, :x, :y, :z], scan.volume[:, :x, :y, :z])
    np.testing.assert_array_equal(tiles["last corner"][0, -1, -1, -1], scan.volume[0, -1, -1, -1])
    outside = tiles["half outside"] == PADDING["int16"]
    assert outside[0, : chosen.tiling.roi_size[0] // 2].all()
    assert not outside[
        0, chosen.tiling.roi_size[0] // 2 :, chosen.tiling.roi_size[1] // 2 :, chosen.tiling.roi_size[2] // 2 :
    ][:, :, : scan.volume.shape[3]].any()
    assert not tiles["zeros"].any()


@pytest.mark.parametrize("mask", ["all", "nonzero"])
def test_figures_of_the_whole_scan_are_monais(mask: str) -> None:
    chosen = spec(input={"intensity": {"rule": "zscore", "mask": mask}})
    values = phantom(chosen)
    subtract, divide = intensity_statistics(values, chosen)[0]
    normal = np.asarray(NormalizeIntensity(nonzero=mask == "nonzero")(torch.from_numpy(values)))
    inside = values != 0 if mask == "nonzero" else np.ones_like(values, bool)
    np.testing.assert_allclose(((values - subtract) / divide)[inside], normal[inside], atol=1e-5)


def test_percentiles_are_numpys() -> None:
    chosen = spec(input={"intensity": {"rule": "percentile", "lower": 5.0, "upper": 90.0, "mask": "nonzero"}})
    values = phantom(chosen)
    low, high = np.percentile(values[values != 0], (5, 90))
    np.testing.assert_allclose(intensity_statistics(values, chosen)[0], [low, high - low], rtol=1e-6)


def write_scan(path: Path, values: Array, affine: Array | None = None) -> Path:
    nib.save(nib.Nifti1Image(values, np.eye(4) if affine is None else affine), path)
    return path


def with_scans(folder: Path, *names: str | list[str], **changes: Any) -> Spec:
    return parse_spec(fields(acceptance={"scans": list(names)}, **changes), "tiny.toml", folder)


def test_scans_are_turned_to_the_orientation_and_spacing_of_the_spec(tmp_path: Path) -> None:
    values = np.arange(20 * 10 * 6, dtype=np.int16).reshape(20, 10, 6)
    write_scan(tmp_path / "a.nii.gz", values, np.diag([-1.0, 1.0, 2.0, 1.0]))  # stored LAS, slices 2 mm thick
    scan = gather_scans(with_scans(tmp_path, "a.nii.gz", input={"orientation": "RAS", "dtype": "int16"}))[0]
    np.testing.assert_array_equal(scan.volume[0], values[::-1])
    fine = gather_scans(with_scans(tmp_path, "a.nii.gz", input={"orientation": "RAS", "spacing": [1.0, 1.0, 1.0]}))[0]
    assert fine.volume.shape == (1, 20, 10, 11)
    assert scan.name == "a.nii.gz"


def test_several_channels_are_several_files(tmp_path: Path) -> None:
    for name, factor in (("a.nii", 1), ("b.nii", 3)):
        write_scan(tmp_path / name, np.full((9, 9, 9), factor, np.int16))
    volume = gather_scans(with_scans(tmp_path, ["a.nii", "b.nii"], input={"channels": ["T1", "T2"]}))[0].volume
    assert [float(channel.mean()) for channel in volume] == [1.0, 3.0]


def test_axes_are_reversed_where_the_client_reverses_them(tmp_path: Path) -> None:
    """By nnU-Net's plan. Its tiling alone leaves a scan to MONAI's transforms."""
    image = nib.Nifti1Image(np.zeros((5, 6, 7), np.int16), np.eye(4))
    image.header["descrip"] = f"{PREPARED_MARK}{'0' * DIGITS}"
    nib.save(image, tmp_path / "a.nii")
    tiling = {"semantics": "nnunet"}
    planned = with_scans(tmp_path, "a.nii", tiling=tiling, nnunet={"preparation": "0" * 64})
    assert gather_scans(planned)[0].volume.shape == (1, 7, 6, 5)
    assert gather_scans(with_scans(tmp_path, "a.nii", tiling=tiling))[0].volume.shape == (1, 5, 6, 7)


def test_fractions_use_the_whole_range_of_int16_where_figures_cancel_the_scale(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((9, 9, 9)).astype(np.float32)
    write_scan(tmp_path / "a.nii", values)
    chosen = with_scans(tmp_path, "a.nii", input={"dtype": "int16", "intensity": {"rule": "zscore"}})
    scan = gather_scans(chosen)[0]
    subtract, divide = scan.statistics[0]
    np.testing.assert_allclose((scan.volume[0] - subtract) / divide, (values - values.mean()) / values.std(), atol=1e-3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (None, "no such file"),
        (b"not an image", "what cannot be read"),
        (np.full((4, 4, 4), np.nan, np.float32), "found NaN or infinity"),
        (np.zeros((4, 4, 4, 3), np.int16), "3D scan of one channel"),
        (np.full((4, 4, 4), 40_000, np.int32), "expected values that int16 holds, found 40000"),
        (np.full((4, 4, 4), -32_768, np.int16), "expected values that int16 holds"),
    ],
)
def test_a_scan_that_cannot_be_used_is_refused_by_file(tmp_path: Path, values: Any, message: str) -> None:
    path = tmp_path / "scan.nii"
    if isinstance(values, bytes):
        path.write_bytes(values)
    elif values is not None:
        write_scan(path, values)
    with pytest.raises(ScanError, match=rf"scan\.nii: .*{message}"):
        gather_scans(with_scans(tmp_path, "scan.nii", input={"dtype": "int16"}))


def test_channels_of_different_shapes_are_refused(tmp_path: Path) -> None:
    write_scan(tmp_path / "a.nii", np.zeros((4, 4, 4), np.int16))
    write_scan(tmp_path / "b.nii", np.zeros((4, 4, 5), np.int16))
    with pytest.raises(ScanError, match=r"a.nii \[4, 4, 4\], b.nii \[4, 4, 5\]"):
        gather_scans(with_scans(tmp_path, ["a.nii", "b.nii"], input={"channels": ["T1", "T2"]}))


def test_values_travel_rounded_to_the_nearest() -> None:
    values = np.array([-0.6, 0.4, 0.6, 32_766.9])
    assert as_input(values, spec(input={"dtype": "int16"}), "x").tolist() == [-1, 0, 1, 32_767]


# How it is measured


def test_a_whole_scan_is_monais_own_sliding_window() -> None:
    chosen = spec(input={"intensity": {"rule": "zscore", "mask": "nonzero"}})
    scan = gather_scans(chosen)[0]
    found = segment(scan, chosen, torch_runner(wrapper_of(chosen)), 2)
    subtract, divide = scan.statistics[0]
    normal = torch.from_numpy((scan.volume - subtract) / divide)[None].float()
    with torch.inference_mode():
        expected = sliding_window_inference(
            normal, chosen.tiling.roi_size, 1, tiny_unet(), overlap=0.25, mode="gaussian"
        )
    np.testing.assert_allclose(found, expected[0].numpy(), atol=1e-4)


def test_a_2d_network_goes_slice_by_slice() -> None:
    chosen = spec(tiling={"roi_size": [12, 8], "slice_axis": 1}, input={"intensity": {"rule": "none"}})
    scan = gather_scans(chosen)[0]
    found = segment(scan, chosen, torch_runner(Wrapper(Linear((1.0, 2.0, -1.0)), chosen)), 3)
    np.testing.assert_allclose(found, scan.volume * np.reshape([1.0, 2.0, -1.0], (3, 1, 1, 1)), rtol=1e-5)


def test_labels_are_stitched_as_votes() -> None:
    chosen = spec(output={"scores": "labels", "dtype": "uint8"}, input={"intensity": {"rule": "none"}})
    scan = gather_scans(chosen)[0]
    votes = segment(scan, chosen, torch_runner(Wrapper(Linear((0.0, 1.0, -1.0)), chosen)), 2)
    assert votes.shape == (3, *scan.volume.shape[1:])
    np.testing.assert_array_equal(votes.argmax(axis=0), np.where(scan.volume[0] > 0, 1, 0))


def test_dice_is_the_textbooks() -> None:
    one, other = np.zeros((2, 4, 4, 4), bool)
    one[:2], other[1:3] = True, True
    assert dice(one, other) == pytest.approx(2 * 16 / (32 + 32))
    assert dice(one, one) == 1.0
    assert dice(one, ~one) == 0.0
    assert dice(np.zeros(3, bool), np.zeros(3, bool)) is None


def test_changed_counts_a_voxel_once_however_many_labels_change() -> None:
    one = np.zeros((3, 2, 2, 2), bool)
    one[0] = True
    other = one.copy()
    other[:, 0, 0, 0] = [False, True, True]
    assert changed_voxels(one, other) == 1


SCORES = np.random.default_rng(4).normal(0, 2, (3, 5, 4, 3)).astype(np.float32)


@pytest.mark.parametrize("regions", [True, False])
def test_masks_do_not_depend_on_how_scores_travel(regions: bool) -> None:
    tensor = torch.from_numpy(SCORES)
    chosen = tensor.sigmoid() if regions else tensor.softmax(0)
    logits = spec(output={"regions": regions}).output
    stored = spec(output={"regions": regions, "scores": "probabilities"}).output
    np.testing.assert_array_equal(masks(SCORES, logits), masks(chosen.numpy(), stored))
    np.testing.assert_allclose(probabilities(SCORES, logits), probabilities(chosen.numpy(), stored), atol=1e-6)


def test_masks_of_uint8_are_those_of_its_probability() -> None:
    output = spec(output={"scores": "foreground", "foreground": "one", "dtype": "uint8"}).output
    scores = np.array([[0, 127, 128, 255]], np.float32)
    assert masks(scores, output).tolist() == [[False, False, True, True]]
    np.testing.assert_allclose(probabilities(scores, output), scores / 255)


# What it says


def test_pytorch_itself_is_accepted_without_error(reference: Reference, tmp_path: Path) -> None:
    found = certificate(spec(), torch_runner(wrapper_of(spec())), reference, tmp_path).content
    assert found["accepted"]
    assert found["metrics"]["dice_min"] == 1.0
    assert found["metrics"]["changed_fraction"] == 0.0
    assert found["metrics"]["max_abs_error"] < 1e-5
    require_accepted(found)


def test_a_certificate_holds_what_is_needed_to_repeat_it(reference: Reference, tmp_path: Path) -> None:
    found = certificate(spec(), torch_runner(wrapper_of(spec())), reference, tmp_path).content
    assert {tile["batch"] for tile in found["tiles"]} == {1, 2}
    assert len(found["tiles"]) == 2 * len(reference.tiles)
    assert found["hashes"] == {**HASHES, "files": {"model.onnx": hashlib.sha256(b"engine").hexdigest()}}
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"]["onnxruntime"]
    assert found["machine"]["cores"] >= 1
    scan = found["scans"][0]
    assert scan["sha256"] == hashlib.sha256(reference.scans[0][0].volume.tobytes()).hexdigest()
    assert sum(scan["voxels"].values()) == np.prod(scan["shape"])
    assert set(scan["dice"]) == {"background", "one", "two"}


def test_the_file_is_the_same_each_time_and_its_digest_is_the_cards(reference: Reference, tmp_path: Path) -> None:
    run = torch_runner(wrapper_of(spec()))
    texts = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        made = certificate(spec(), run, reference, tmp_path / name)
        digest = made.write(tmp_path / name)
        texts.append((tmp_path / name / "certificate.json").read_bytes())
        assert digest == hashlib.sha256(texts[-1]).hexdigest()
        assert short_form(made.content, digest).sha256 == digest
    assert texts[0] == texts[1]
    assert json.loads(texts[0])["accepted"] is True


def test_an_error_of_known_size_is_the_error_reported(reference: Reference, tmp_path: Path) -> None:
    chosen = spec(output={"scores": "probabilities"})
    truth = make_reference(wrapper_of(chosen), chosen)
    run = torch_runner(wrapper_of(chosen))

    def shifted(inputs: Mapping[str, Array]) -> Array:
        return run(inputs) - np.float32(0.002)

    figures = certificate(chosen, shifted, truth, tmp_path).content["metrics"]
    assert figures["max_abs_error"] == pytest.approx(0.002, rel=1e-2)
    assert figures["mean_abs_error"] == pytest.approx(0.002, rel=1e-2)


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        (lambda scores: scores + np.reshape([0, 0.3, 0], (1, 3, 1, 1, 1)).astype(np.float32), "max_abs_error"),
        (lambda scores: scores * np.float32(1.01), "score_error"),
        (lambda scores: np.flip(scores, 1), "dice_min"),
        (lambda scores: np.flip(scores, 2), "changed_fraction"),
        (np.zeros_like, "dice_min"),
    ],
)
def test_a_wrong_engine_is_refused_by_the_figure_it_misses(
    reference: Reference, tmp_path: Path, change: Any, missed: str
) -> None:
    found = certificate(spec(), faulty(change), reference, tmp_path).content
    assert not found["accepted"]
    with pytest.raises(AcceptanceError, match=rf"onnxruntime engine \(fp32\) is not accepted.*{missed}: expected at"):
        require_accepted(found)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_engine_that_gives_no_numbers_is_refused_by_tile(reference: Reference, tmp_path: Path, value: float) -> None:
    def broken(scores: Array) -> Array:
        scores[0, 0, 0, 0, 0] = value
        return scores

    with pytest.raises(AcceptanceError, match="tile 'first corner' at a batch of 1: expected finite scores, found 1"):
        certificate(spec(), faulty(broken), reference, tmp_path)


def test_an_engine_that_is_wrong_only_in_larger_batches_is_refused(reference: Reference, tmp_path: Path) -> None:
    def first_only(scores: Array) -> Array:
        return np.concatenate([scores[:1]] * len(scores))

    found = certificate(spec(), faulty(first_only), reference, tmp_path).content
    by_batch = {batch: max(t["max_abs_error"] for t in found["tiles"] if t["batch"] == batch) for batch in (1, 2)}
    assert by_batch[1] < 1e-5 < 1e-2 < by_batch[2]
    assert not found["accepted"]


def test_limits_are_the_specs_or_the_defaults() -> None:
    assert limits_of(spec(acceptance={"max_abs_error": 0.25, "min_dice": 0.9, "max_changed": 0.5})) == {
        "max_abs_error": 0.25,
        "max_score_error": MAX_SCORE_ERROR["fp32"],
        "min_dice": 0.9,
        "max_changed": 0.5,
        "allow_unseen_labels": False,
        "max_logit_error": MAX_LOGIT_ERROR,
    }


def test_a_figure_on_the_limit_is_accepted() -> None:
    limits = limits_of(spec(acceptance={"max_abs_error": 0.25, "min_dice": 0.9, "max_changed": 0.5}))
    on = {"max_abs_error": 0.25, "dice_min": 0.9, "changed_fraction": 0.5}
    on |= {"max_logit_error": MAX_LOGIT_ERROR, "score_error": MAX_SCORE_ERROR["fp32"]}
    assert violations(on, limits) == []
    for metric, value in on.items():
        over = value - 1e-6 if metric == "dice_min" else value + 1e-6
        (violation,) = violations({**on, metric: over}, limits)
        assert violation.startswith(f"{metric}: expected at ")


@pytest.mark.parametrize(
    "output",
    [
        {"scores": "probabilities", "dtype": "uint8"},
        {"scores": "probabilities", "dtype": "fp16", "regions": True},
        {"scores": "foreground", "foreground": "two", "dtype": "uint8"},
        {"scores": "labels", "dtype": "uint8"},
    ],
)
def test_every_kind_of_output_can_be_certified(tmp_path: Path, output: dict[str, Any]) -> None:
    chosen = spec(output=output)
    wrapper = wrapper_of(chosen)
    found = certificate(chosen, torch_runner(wrapper), make_reference(wrapper, chosen), tmp_path).content
    assert found["accepted"]
    assert list(found["scans"][0]["dice"]) == (["two"] if "foreground" in output else ["background", "one", "two"])


def test_a_label_that_is_nowhere_has_no_dice(tmp_path: Path) -> None:
    chosen = spec(input={"intensity": {"rule": "none"}})
    wrapper = Wrapper(Linear((1.0, 2.0, -9.0)), chosen)
    found = certificate(chosen, torch_runner(wrapper), make_reference(wrapper, chosen), tmp_path).content
    assert found["scans"][0]["dice"]["two"] is None
    assert found["scans"][0]["voxels"]["two"] == 0
    assert found["metrics"]["dice_min"] == 1.0


def test_the_reference_is_not_changed_by_measuring(reference: Reference, tmp_path: Path) -> None:
    before = [scores.copy() for _, scores in (*reference.tiles, *reference.scans)]
    certificate(spec(), faulty(np.zeros_like), reference, tmp_path)
    after = [scores for _, scores in (*reference.tiles, *reference.scans)]
    assert all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))
    assert dataclasses.is_dataclass(reference)
