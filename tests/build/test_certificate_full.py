"""Every figure of a full certificate against an oracle: MONAI's distances and windows, and counting by hand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import compute_hausdorff_distance
from numpy.typing import NDArray

from tests.support.build_specs import Linear, fields, spec, tiny_unet
from voxtile_build.arrays import Runner
from voxtile_build.certificate import archive
from voxtile_build.certificate.archive import pack, unpack
from voxtile_build.certificate.certificate import Certificate, Reference, certify, make_reference
from voxtile_build.certificate.limits import MAX_ABS_ERROR, limits_of, violations
from voxtile_build.certificate.page import picture_of
from voxtile_build.certificate.stitched_scan import stitch
from voxtile_build.engines import find_engine
from voxtile_build.engines.base import Compiled
from voxtile_build.errors import VerificationError
from voxtile_build.evaluation.distances import hausdorff_95
from voxtile_build.evaluation.evaluate import as_votes, compare, measure_tiles, near_boundary
from voxtile_build.evaluation.metrics import masks, probabilities
from voxtile_build.evaluation.samples import Scan, gather_scans
from voxtile_build.evaluation.tiles import Tile
from voxtile_build.evaluation.whole_scan import segment, torch_runner
from voxtile_build.graph.wrapper import Wrapper
from voxtile_build.spec.spec import Spec, parse_spec

Array = NDArray[Any]
HASHES = {"weights": "a" * 64, "onnx": "b" * 64}
# float32 sums in another order.
STITCHED = 1e-4


def wrapper_of(chosen: Spec) -> Wrapper:
    return Wrapper(tiny_unet(channels=len(chosen.input.channels)), chosen).eval()


def certificate(chosen: Spec, run: Runner, reference: Reference, folder: Path) -> Certificate:
    file = folder / "model.onnx"
    file.write_bytes(b"engine")
    return certify(chosen, find_engine("onnxruntime"), Compiled((file,), "fp32", run), reference, HASHES)


@pytest.fixture(scope="module")
def reference() -> Reference:
    return make_reference(wrapper_of(spec()), spec())


def blob(seed: int, shape: tuple[int, ...] = (13, 11, 9)) -> NDArray[np.bool_]:
    rng = np.random.default_rng(seed)
    grid = np.meshgrid(*(np.arange(size) for size in shape), indexing="ij")
    centre, half = rng.uniform(3, 8, len(shape)), rng.uniform(1.5, 4, len(shape))
    return np.asarray(sum(((g - c) / h) ** 2 for g, c, h in zip(grid, centre, half, strict=True)) <= 1)


# Distances


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # MONAI's, about itself
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 1.3, 2.5)])
def test_the_distance_is_monais(seed: int, spacing: tuple[float, ...]) -> None:
    one, other = blob(seed), blob(seed + 100)
    if seed % 2:
        other[0, 0, 0] = True  # at the border of the volume, far from the rest
    tensors = [torch.from_numpy(mask)[None, None] for mask in (one, other)]
    expected = compute_hausdorff_distance(*tensors, include_background=True, percentile=95, spacing=list(spacing))
    assert hausdorff_95(one, other, spacing) == pytest.approx(float(expected), rel=1e-5)


def test_a_shift_by_whole_voxels_is_its_length_in_millimetres() -> None:
    one = np.zeros((20, 12, 12), bool)
    one[4:8, 3:9, 3:9] = True
    assert hausdorff_95(one, np.roll(one, 5, axis=0), (2.0, 1.0, 1.0)) == pytest.approx(10.0)
    assert hausdorff_95(one, np.roll(one, 2, axis=2), (2.0, 1.0, 0.5)) == pytest.approx(1.0)


def test_planes_have_distances_too() -> None:
    one = np.zeros((9, 9), bool)
    one[2:5, 2] = True
    assert hausdorff_95(one, np.roll(one, 3, axis=1), (1.0, 0.5)) == pytest.approx(1.5)


def test_where_a_mask_is_empty_there_is_no_distance() -> None:
    empty, full = np.zeros((4, 4, 4), bool), np.ones((4, 4, 4), bool)
    assert hausdorff_95(empty, empty, (1, 1, 1)) == 0.0
    assert hausdorff_95(empty, full, (1, 1, 1)) is None
    assert hausdorff_95(full, empty, (1, 1, 1)) is None


@given(st.integers(0, 10_000), st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_the_distance_is_symmetric_and_zero_only_for_equal_surfaces(first: int, second: int) -> None:
    one, other = blob(first), blob(second)
    there, back = hausdorff_95(one, other, (1.0, 2.0, 3.0)), hausdorff_95(other, one, (1.0, 2.0, 3.0))
    assert there == back
    assert hausdorff_95(one, one, (1, 1, 1)) == 0.0


# The border between labels


def test_voxels_near_the_border_are_those_that_an_error_of_that_size_could_flip() -> None:
    output = spec(output={"scores": "probabilities"}).output
    rng = np.random.default_rng(3)
    likely = rng.dirichlet((1, 1, 1), 500).T.astype(np.float32).reshape(3, 10, 10, 5)
    error = 0.05
    first = likely.argmax(axis=0)
    could = np.zeros(first.shape, bool)
    for other in range(3):
        worst = np.take_along_axis(likely, first[None], axis=0)[0] - error
        could |= (other != first) & (likely[other] + error >= worst)
    assert near_boundary(likely, output, error) == could.sum()
    assert near_boundary(likely, output, 0.0) == 0
    assert near_boundary(likely, output, 1.0) == first.size


def test_regions_have_a_border_each() -> None:
    output = spec(output={"scores": "probabilities", "regions": True}).output
    likely = np.full((3, 2, 2, 2), 0.9, np.float32)
    likely[1, 0, 0, 0] = 0.49
    likely[2, 0, 0, 0] = 0.51
    likely[0, 1, 1, 1] = 0.6
    assert near_boundary(likely, output, 0.02) == 1
    assert near_boundary(likely, output, 0.11) == 2


def test_no_voxel_outside_that_count_flips(reference: Reference) -> None:
    chosen = spec()
    expected = reference.scans[0][1]
    found = expected + np.random.default_rng(1).normal(0, 0.05, expected.shape).astype(np.float32)
    record = compare(expected, found, chosen, "any", "scan", (1, 1, 1))
    assert 0 < record["changed_voxels"] <= record["near_boundary_voxels"]
    assert record["changed_voxels"] == (expected.argmax(0) != found.argmax(0)).sum()
    assert record["changed_fraction"] == record["changed_voxels"] / expected[0].size


@pytest.mark.parametrize("regions", [True, False])
def test_probabilities_are_pytorchs_for_any_magnitude(regions: bool) -> None:
    logits = (np.random.default_rng(0).normal(0, 1, (3, 40)) * np.logspace(-3, 4, 40)).astype(np.float32)
    tensor = torch.from_numpy(logits)
    expected = tensor.sigmoid() if regions else tensor.softmax(0)
    found = probabilities(logits, spec(output={"regions": regions}).output)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)


def test_a_tile_of_labels_is_compared_as_votes() -> None:
    output = spec(output={"scores": "labels", "dtype": "uint8"}).output
    labels = np.random.default_rng(0).integers(0, 3, (1, 4, 5, 6)).astype(np.uint8)
    votes = as_votes(labels, output)
    assert votes.shape == (3, 4, 5, 6)
    np.testing.assert_array_equal(votes.argmax(0), labels[0])
    np.testing.assert_array_equal(as_votes(votes, output), votes)


# Windows without PyTorch


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tiling": {"overlap": 0.5, "mode": "constant"}},
        {"tiling": {"overlap": 0.0, "sigma_scale": 0.3}},
        {"tiling": {"overlap": 0.9}},
        {"tiling": {"overlap": [0.5, 0.0, 0.75], "sigma_scale": [0.1, 0.3, 0.2], "cval": -1.5}},
        {"tiling": {"semantics": "nnunet", "overlap": 0.5}},
        {"input": {"intensity": {"rule": "zscore", "mask": "nonzero"}, "dtype": "int16"}},
        {"output": {"scores": "labels", "dtype": "uint8"}},
        {"output": {"scores": "foreground", "foreground": "one", "dtype": "uint8"}},
    ],
)
def test_a_scan_is_stitched_as_monai_stitches_it(changes: dict[str, Any]) -> None:
    chosen = spec(**changes)
    scan, run = gather_scans(chosen)[0], torch_runner(wrapper_of(chosen))
    expected = segment(scan, chosen, run, 2)
    found = stitch(scan, chosen, run, 3)
    assert found.dtype == np.float32
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found, expected, atol=STITCHED * scale)


@pytest.mark.parametrize("sizes", [{}, {"multiple": 4, "overlap": 0.0}], ids=["tiles", "whole slices"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_are_stitched_as_monai_stitches_them(axis: int, sizes: dict[str, Any]) -> None:
    chosen = spec(tiling={"roi_size": [12, 8], "slice_axis": axis, **sizes})
    scan, run = gather_scans(chosen)[0], torch_runner(Wrapper(Linear((1.0, 2.0, -1.0)), chosen))
    np.testing.assert_allclose(stitch(scan, chosen, run, 2), segment(scan, chosen, run, 3), atol=STITCHED)


# What is said


def test_every_batch_size_that_will_be_served_is_measured(tmp_path: Path) -> None:
    chosen = spec(serving={"max_batch_size": 4})
    wrapper = wrapper_of(chosen)
    seen: set[int] = set()

    def run(inputs: Mapping[str, Array]) -> Array:
        seen.add(len(inputs["roi"]))
        return torch_runner(wrapper)(inputs)

    found = certificate(chosen, run, make_reference(wrapper, chosen), tmp_path).content
    assert {1, 2, 3, 4} <= seen
    assert {tile["batch"] for tile in found["tiles"]} == {1, 2, 3, 4}
    assert {tile["name"] for tile in found["tiles"] if tile["batch"] == 4} == {
        tile["name"] for tile in found["tiles"] if tile["batch"] == 1
    }


def test_an_engine_that_fails_at_one_size_between_is_refused(tmp_path: Path) -> None:
    chosen = spec(serving={"max_batch_size": 4})
    wrapper = wrapper_of(chosen)

    def run(inputs: Mapping[str, Array]) -> Array:
        scores = torch_runner(wrapper)(inputs)
        return scores + np.float32(9) * np.arange(3).reshape(1, 3, 1, 1, 1) if len(scores) == 3 else scores

    found = certificate(chosen, run, make_reference(wrapper, chosen), tmp_path).content
    assert not found["accepted"]
    assert all(tile["batch"] == 3 for tile in found["tiles"] if tile["max_abs_error"] > 0.1)


def test_tiles_and_scans_carry_every_figure(reference: Reference, tmp_path: Path) -> None:
    found = certificate(spec(), torch_runner(wrapper_of(spec())), reference, tmp_path).content
    for record in (*found["tiles"], *found["scans"]):
        for name in ("max_abs_error", "mean_abs_error", "changed_voxels", "near_boundary_voxels"):
            assert record[name] >= 0
        assert set(record["dice"]) == set(record["hausdorff_95_mm"]) == {"background", "one", "two"}


def test_distances_are_in_millimetres_of_the_prepared_scan(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 500, (21, 9, 17)).astype(np.int16)
    affine = np.zeros((4, 4))
    affine[2, 0], affine[0, 1], affine[1, 2], affine[3, 3] = 2.0, -0.5, 3.0, 1.0  # stored S, L, A
    nib.save(nib.Nifti1Image(values, affine), tmp_path / "a.nii")

    def spacing(**changes: Any) -> tuple[float, ...]:
        acceptance = {"scans": ["a.nii"]}
        return gather_scans(parse_spec(fields(acceptance=acceptance, **changes), "x", tmp_path))[0].spacing

    assert spacing() == (2.0, 0.5, 3.0)
    assert spacing(input={"orientation": "RAS"}) == (0.5, 3.0, 2.0)
    assert spacing(input={"orientation": "RAS", "spacing": [1.5, 1.0, 1.0]}) == (1.5, 1.0, 1.0)
    assert spacing(tiling={"semantics": "nnunet"}) == (2.0, 0.5, 3.0)


def test_reduced_precision_has_no_limit_of_its_own_on_a_single_voxel() -> None:
    assert limits_of(spec(), "fp32")["max_abs_error"] == MAX_ABS_ERROR
    assert limits_of(spec(), "bf16")["max_abs_error"] is None
    assert limits_of(spec(acceptance={"max_abs_error": 0.2}), "bf16")["max_abs_error"] == 0.2
    figures = {"max_abs_error": 0.9, "max_logit_error": 0.0, "dice_min": 1.0, "changed_fraction": 0.0}
    figures["score_error"] = 0.1
    assert violations(figures, limits_of(spec(), "bf16")) == []
    assert "max_abs_error: expected at most 0.2" in violations(figures, {**limits_of(spec()), "max_abs_error": 0.2})[0]
    worse = {**figures, **dict.fromkeys(("score_error", "dice_min", "changed_fraction"), float("nan"))}
    assert len(violations(worse, limits_of(spec(), "bf16"))) == 3


# The page


def shifted(reference: Reference) -> Runner:
    """PyTorch itself, one label made more likely: an engine whose flips are known."""
    run = torch_runner(wrapper_of(spec()))
    return lambda inputs: run(inputs) + np.reshape([0, 0.05, 0], (1, 3, 1, 1, 1)).astype(np.float32)


def test_the_page_says_what_the_file_says_and_shows_where_voxels_flip(reference: Reference, tmp_path: Path) -> None:
    made = certificate(spec(acceptance={"max_changed": 0.5}), shifted(reference), reference, tmp_path)
    made.write(tmp_path)
    page = (tmp_path / "certificate.md").read_text()
    content = json.loads((tmp_path / "certificate.json").read_text())
    scan = content["scans"][0]
    assert page.startswith("# tiny, onnxruntime, fp32: not accepted")
    assert f"{scan['changed_voxels']} voxels change" in page
    assert f"{scan['near_boundary_voxels']} lie within the measured error" in page
    for label, similarity in scan["dice"].items():
        assert f"| {label} | {scan['voxels'][label]} | {similarity:.6f} | {scan['hausdorff_95_mm'][label]:g} |" in page
    assert f"![{made.pictures[0].title}](changed_0.png)" in page
    assert (tmp_path / "changed_0.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_certificate_gives_the_same_files(reference: Reference, tmp_path: Path) -> None:
    digests = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        certificate(spec(), shifted(reference), reference, tmp_path / name).write(tmp_path / name)
        files = sorted((tmp_path / name).iterdir())
        digests.append([(file.name, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files])
    assert digests[0] == digests[1]
    assert [name for name, _ in digests[0]] == [
        "certificate.json",
        "certificate.md",
        "changed_0.png",
        "model.onnx",
        "samples.npz",
    ]


def test_the_picture_is_of_the_plane_with_most_flips() -> None:
    volume = np.arange(4 * 5 * 6, dtype=np.float32).reshape(1, 4, 5, 6)
    wanted = np.zeros((2, 4, 5, 6), bool)
    wanted[0], wanted[1, 2:] = True, True
    wanted[0, 2:] = False
    found = wanted.copy()
    found[:, 1, 1, 1] = [False, True]
    found[:, 0, 3:5, 4] = [[False, False], [True, True]]
    picture = picture_of(Scan("scan", volume, np.zeros((1, 2))), wanted, found)
    assert picture.title == "scan, plane 4 of 6: 2 of 3 changed voxels"
    assert np.argwhere(picture.changed).tolist() == [[0, 3], [0, 4]]
    np.testing.assert_array_equal(picture.image, volume[0, ..., 4])
    assert np.argwhere(picture.borders)[:, 0].tolist() == [1] * 5
    unchanged = picture_of(Scan("scan", volume, np.zeros((1, 2))), wanted, wanted)
    assert unchanged.title == "scan, plane 3 of 6: 0 of 0 changed voxels"


@pytest.mark.parametrize(("ends", "constant"), [((-65504, 65504), False), ((7, 7), True)])
def test_tiles_of_one_value_are_told_apart_whatever_halves_they_hold(ends: tuple[float, float], constant: bool) -> None:
    chosen = spec(input={"dtype": "fp16"})
    roi = np.full(chosen.roi_shape, ends[0], np.float16)
    roi[0, 0, 0, 0] = ends[1]
    tile = Tile("any", roi, np.array([[0, 1]], np.float32))
    scores = np.zeros((3, *chosen.tiling.roi_size), np.float32)
    records, _ = measure_tiles(chosen, "any", lambda inputs: scores[None], [(tile, scores)], 1, spacing=(1, 1, 1))
    assert records[0].get("constant", False) == constant


# The stored reference


def test_the_reference_comes_back_as_it_was(reference: Reference, tmp_path: Path) -> None:
    (tmp_path / "samples.npz").write_bytes(pack(spec(), reference.tiles, reference.scans))
    stored = unpack(tmp_path / "samples.npz")
    assert stored.stride == 1
    assert (stored.spec.tiling, stored.spec.output, stored.spec.input) == (spec().tiling, spec().output, spec().input)
    for (tile, scores), (kept, kept_scores) in zip(reference.tiles, stored.tiles, strict=True):
        assert tile.name == kept.name
        np.testing.assert_array_equal(tile.roi, kept.roi)
        np.testing.assert_array_equal(scores, kept_scores)
        assert kept_scores.dtype == np.float32
    assert stored.scan is not None
    np.testing.assert_array_equal(stored.scan[0].volume, reference.scans[0][0].volume)
    np.testing.assert_array_equal(stored.scan[1], masks(reference.scans[0][1], spec().output))


def test_large_tiles_are_thinned_and_still_compared(
    reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sum(scores.nbytes for _, scores in reference.tiles)
    monkeypatch.setattr(archive, "TILE_BYTES", whole // 8)
    (tmp_path / "samples.npz").write_bytes(pack(spec(), reference.tiles, reference.scans))
    stored = unpack(tmp_path / "samples.npz")
    assert stored.stride == 2
    assert sum(scores.nbytes for _, scores in stored.tiles) <= whole // 8
    run = torch_runner(wrapper_of(spec()))
    records, _ = measure_tiles(spec(), "any", run, stored.tiles, 2, spacing=stored.spacing, stride=stored.stride)
    assert max(record["max_abs_error"] for record in records) < 1e-5


def test_a_scan_that_is_too_large_is_not_stored(
    reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "SCAN_BYTES", reference.scans[0][0].volume.nbytes - 1)
    (tmp_path / "samples.npz").write_bytes(pack(spec(), reference.tiles, reference.scans))
    assert unpack(tmp_path / "samples.npz").scan is None


@pytest.mark.parametrize("name", ["tiny_fold_0", "tiny_fold_all", "tiny"])
def test_the_reference_of_a_fold_is_read_under_its_own_name(name: str, reference: Reference, tmp_path: Path) -> None:
    """No public model may be called so, and the spec of a fold is not read from a file."""
    made = spec().model_copy(update={"name": name})
    (tmp_path / "samples.npz").write_bytes(pack(made, reference.tiles, reference.scans))
    assert unpack(tmp_path / "samples.npz").spec.name == name


def test_no_path_of_this_machine_is_stored(reference: Reference, tmp_path: Path) -> None:
    weights = {"file": "secret-folder/w.safetensors", "sha256": "0" * 64}
    chosen = parse_spec(
        fields(weights=weights, acceptance={"scans": ["a.nii"]}, precision={"calibration": ["b.nii"]}), "x", tmp_path
    )
    packed = tmp_path / "samples.npz"
    packed.write_bytes(pack(chosen, reference.tiles, reference.scans))
    with np.load(packed) as arrays:
        text = arrays["settings"].tobytes().decode()
    assert str(tmp_path) not in text
    assert "secret-folder" not in text


@pytest.mark.parametrize("damage", ["truncated", "missing", "other", "empty"])
def test_a_damaged_reference_is_refused_by_file(reference: Reference, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "samples.npz"
    content = pack(spec(), reference.tiles, reference.scans)
    if damage == "other":
        np.savez(path, unrelated=np.zeros(3))
    elif damage != "missing":
        path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
    with pytest.raises(VerificationError, match=r"samples\.npz: expected the stored reference"):
        unpack(path)
