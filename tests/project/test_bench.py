"""The benchmark: its arithmetic exactly, its shipped weights, and the whole of it once at tiny sizes."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.inferers import sliding_window_inference
from monai.metrics import compute_dice

from bench import __main__ as command
from bench import figures, nnunet, readme, scans, tables, turns
from bench.engines import load_network
from bench.entries import LEVELS, OPEN, REDUCED, Changes, Entry, build_entries, build_levels, changed
from bench.memory import forget_peak, peak_rss_bytes, status_bytes
from bench.readme import block_of, summary_block, tables_block, with_block
from bench.section_resampling import resample
from bench.section_scans import Behind, mask_path, table
from bench.settings import SECTIONS, Settings
from bench.subjects import subject_of
from bench.ways import WindowedScan, nnunet_scan, normalised, single_path
from bench.workloads import FIRST, OWN_PREDICTOR, Row, Workload, workloads
from docs.generate import chart, summary
from models.training.brain_data import tissue_labels
from models.training.mni152 import FILES, fetch_mni152
from tests.support.build_specs import spec, tiny_unet
from voxtile_build.errors import BuildError
from voxtile_build.evaluation.calibration import calibrate
from voxtile_build.evaluation.samples import gather_scans
from voxtile_build.hashing import file_sha256
from voxtile_build.importers.nnunet.models import models_of
from voxtile_build.repository.folds import Fold, Model
from voxtile_build.spec.precision import Precision
from voxtile_build.spec.spec import parse_spec

ROOT = Path(__file__).parents[2]
SCAN_KEYS = {"workload", "row", "seconds", "ratio", "peak_rss_bytes", "dice_min", "changed_fraction"}
ENGINE_KEYS = {
    "network", "engine", "precision", "batch", "seconds_per_roi", "ratio", "dice_min", "changed_fraction",
}  # fmt: skip
SAME = 1e-6
"""Sums of float32 in another order."""


# Arithmetic -------------------------------------------------------------------------------------------------


def test_a_quick_run_leaves_out_what_takes_long_to_build_unless_it_is_asked_for() -> None:
    assert command.parse([]).sections == SECTIONS
    assert set(SECTIONS) - set(command.parse(["--quick"]).sections) == {"swinunetr", "engines"}
    assert command.parse(["--quick", "--only", "engines,unet"]).sections == ("unet", "engines")


def test_ways_take_turns_in_alternating_order() -> None:
    order: list[str] = []

    def way(name: str) -> Callable[[], int]:
        return lambda: (order.append(name), len(order))[1]

    results = turns.interleave({name: way(name) for name in "abc"}, 3)
    assert "".join(order) == "abccbaabc"
    assert results == {"a": [1, 6, 7], "b": [2, 5, 8], "c": [3, 4, 9]}


def test_no_round_is_begun_that_would_not_fit_the_budget() -> None:
    now = [0.0]

    def slow() -> None:
        now[0] += 10.0

    runs = turns.interleave({"a": slow, "b": slow}, 9, budget_s=65, clock=lambda: now[0])
    assert [len(some) for some in runs.values()] == [3, 3]
    assert [len(some) for some in turns.interleave({"a": slow}, 9, 1, lambda: now[0]).values()] == [1]


@given(st.lists(st.floats(0.001, 1e3), min_size=1))
def test_median_lies_within_the_spread(seconds: list[float]) -> None:
    told = figures.spread(seconds, 1.0)
    assert told["seconds_low"] <= told["seconds"] <= told["seconds_high"]
    assert told["runs"] == len(seconds)


def test_ratio_is_times_faster() -> None:
    assert figures.spread([2.0], 10.0)["ratio"] == 5.0


def test_agreement_against_monai() -> None:
    rng = np.random.default_rng(3)
    one, other = (rng.integers(0, 3, (7, 6, 5)).astype(np.uint8) for _ in range(2))
    hot = [torch.nn.functional.one_hot(torch.from_numpy(mask).long(), 3).movedim(-1, 0)[None] for mask in (one, other)]
    expected = compute_dice(*hot, include_background=False).min().item()
    told = figures.agreement(one, other)
    assert told["dice_min"] == pytest.approx(expected, abs=1e-5)
    assert told["changed_fraction"] == pytest.approx((one != other).mean(), rel=1e-3)
    assert figures.agreement(one, one) == {"dice_min": 1, "changed_fraction": 0}
    assert figures.agreement(np.zeros(4), np.zeros(4))["dice_min"] == 1
    assert figures.agreement(np.zeros(4), np.ones(4)) == {"dice_min": 0, "changed_fraction": 1}


def test_masks_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected a mask of shape \(2,\), found \(3,\)"):
        figures.agreement(np.zeros(2), np.zeros(3))


def test_a_single_mask_is_compared_with_its_label_alone() -> None:
    mask = np.array([0, 1, 2, 2])
    assert figures.only(mask, 2).tolist() == [0, 0, 2, 2]
    assert figures.only(mask, None) is mask


def workload(names: list[str]) -> Workload:
    return Workload("w", "a title", tuple(Row(name, WindowedScan, {}) for name in names), 1.0)


def run(seconds: float, peak: int = 100, behind: int = 0) -> dict[str, Any]:
    memory = {"peak_rss_bytes": peak, "server_rss_bytes": behind}
    return {"seconds": seconds, "engine_seconds": seconds / 2, "tiles": 4, **memory}


def save_mask(path: Path, values: list[int]) -> None:
    nib.save(nib.Nifti1Image(np.array(values, np.uint8).reshape(2, 2, 1), np.eye(4)), path)


def test_rows_are_against_the_first_row_of_the_same_run(tmp_path: Path) -> None:
    settings, work = Settings(tmp_path), workload([FIRST, "5 ours"])
    save_mask(mask_path(work, FIRST, settings), [0, 1, 1, 2])
    save_mask(mask_path(work, "5 ours", settings), [0, 1, 1, 1])
    runs = {FIRST: [run(8.0), run(6.0), run(7.0)], "5 ours": [run(1.0, 60, 990), run(3.0, 70, 1000), run(2.0, 50)]}
    first, ours = table(work, runs, settings)
    assert (first["ratio"], first["dice_min"], first["changed_fraction"]) == (1, 1, 0)
    assert (ours["seconds"], ours["ratio"], ours["runs"]) == (2.0, 3.5, 3)
    assert (ours["seconds_low"], ours["seconds_high"], ours["overhead"]) == (1.0, 3.0, 2.0)
    assert (ours["peak_rss_bytes"], ours["client_rss_bytes"]) == (1070, 70)
    assert ours["dice_min"] == 0  # label 2 is gone
    assert ours["changed_fraction"] == 0.25


def test_rows_beside_nnunets_own_are_compared_with_it_too(tmp_path: Path) -> None:
    settings, names = Settings(tmp_path), [FIRST, "5 ours", OWN_PREDICTOR]
    work = workload(names)
    for name, values in zip(names, ([0, 1, 1, 2], [0, 1, 2, 2], [0, 1, 2, 2]), strict=True):
        save_mask(mask_path(work, name, settings), values)
    ours = table(work, {name: [run(1.0)] for name in names}, settings)[1]
    assert (ours["dice_min_to_nnunet"], ours["changed_fraction_to_nnunet"], ours["changed_fraction"]) == (1, 0, 0.25)


def test_a_single_mask_is_compared_with_one_decided_alike(tmp_path: Path) -> None:
    settings = Settings(tmp_path)
    work = Workload("w", "a title", (Row(FIRST, WindowedScan, {}), Row("5 ours", WindowedScan, {}, label=2)), 1.0)
    save_mask(mask_path(work, FIRST, settings), [0, 1, 2, 2])
    save_mask(single_path(mask_path(work, FIRST, settings)), [0, 0, 0, 2])
    save_mask(mask_path(work, "5 ours", settings), [0, 0, 0, 2])
    first, ours = table(work, {FIRST: [run(2.0)], "5 ours": [run(1.0)]}, settings)
    assert (ours["dice_min"], ours["changed_fraction"], ours["compared_label"]) == (1, 0, 2)
    assert first["compared_label"] is None


def test_without_the_first_row_there_is_no_table(tmp_path: Path) -> None:
    settings = Settings(tmp_path)
    assert table(workload([FIRST, "5 ours"]), {"5 ours": [run(1.0)]}, settings) == []
    assert settings.left_out[0]["row"] == "every row"


# Processes ----------------------------------------------------------------------------------------------------

SMALL = {"by": "Voxtile", "size": 8, "target": 12, "channels": 1}


def test_peak_memory_is_that_of_the_process_and_not_of_its_parent(tmp_path: Path) -> None:
    ballast = np.ones(400 << 20, np.uint8)
    (run, *_) = turns.take_turns({"ours": (resample, SMALL)}, Settings(tmp_path), "a table", 0)["ours"]
    assert run["idle_rss_bytes"] <= run["peak_rss_bytes"] < ballast.nbytes < peak_rss_bytes()
    assert run["seconds"] > 0


def test_a_way_that_cannot_be_made_ready_is_left_out_and_says_why(tmp_path: Path) -> None:
    settings = Settings(tmp_path, tiny=True)
    jobs = {"ours": (resample, SMALL), "none": (resample, {**SMALL, "by": "no such way"})}
    assert list(turns.take_turns(jobs, settings, "a table", 0)) == ["ours"]
    assert settings.left_out == [{"where": "a table", "row": "none", "reason": "KeyError: 'no such way'"}]


def test_a_way_whose_process_dies_takes_no_other_with_it(tmp_path: Path) -> None:
    settings = Settings(tmp_path, tiny=True)
    jobs: dict[str, Any] = {"ours": (resample, SMALL), "dead": (os._exit, 3)}
    assert list(turns.take_turns(jobs, settings, "a table", 0)) == ["ours"]
    assert settings.left_out[0]["row"] == "dead"


def test_nothing_is_run_that_has_nothing_to_be_compared_with(tmp_path: Path) -> None:
    jobs = {"first": (resample, {}), "ours": (resample, SMALL)}
    assert turns.take_turns(jobs, Settings(tmp_path), "a table", 0) == {}


def test_a_peak_that_was_forgotten_does_not_come_back() -> None:
    np.ones(400 << 20, np.uint8)
    before = peak_rss_bytes()
    forget_peak()
    assert peak_rss_bytes() <= before - (300 << 20)
    mapped = mmap.mmap(-1, 64 << 20)
    held = status_bytes("RssShmem")
    mapped.write(bytes(64 << 20))
    assert status_bytes("RssShmem") - held == 64 << 20
    assert peak_rss_bytes() <= before


SHARING = """
import mmap, sys, time
sys.stdin.readline()
region = mmap.mmap(-1, 64 << 20)
for _ in range(64):
    region.write(bytes(1 << 20))
time.sleep(0.5)
region.close()
print("let go", flush=True)
sys.stdin.readline()
"""


def test_what_a_server_shared_for_a_while_is_not_its_own() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", SHARING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )

    def share() -> dict[str, Any]:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write("share\n")
        return {"said": child.stdout.readline()}

    with child, ThreadPoolExecutor(1) as thread:
        measured, peak_bytes = Behind(Entry("brain", "openvino"), child.pid).watch(lambda: thread.submit(share))
        assert measured == {"said": "let go\n"}
        assert peak_rss_bytes(child.pid) > 64 << 20
        assert status_bytes("RssShmem", child.pid) < 8 << 20
        assert peak_bytes < 48 << 20
        assert child.stdin is not None
        child.stdin.close()


# What is segmented, and by what -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The benchmark's data folder, the template already in it."""
    folder = tmp_path_factory.mktemp("bench") / "data"
    folder.mkdir()
    for kind, path in fetch_mni152(ROOT / "out" / "mni152").items():
        (folder / FILES[kind].name).write_bytes(path.read_bytes())
    return folder


def test_crops_keep_their_place_in_space(data: Path) -> None:
    whole, crop = nib.load(fetch_mni152(data)["t1"]), nib.load(scans.brain_crop(data, (40, 36, 33)))
    point = crop.affine @ [3, 5, 7, 1]
    i, j, k = np.rint(np.linalg.inv(whole.affine) @ point).astype(int)[:3]
    assert np.asanyarray(crop.dataobj)[3, 5, 7] == np.asanyarray(whole.dataobj)[i, j, k]


def test_half_air_is_half_air(data: Path) -> None:
    values = np.asanyarray(nib.load(scans.half_air(data, (40, 36, 33))).dataobj)
    assert values.shape == (80, 36, 33)
    assert values[:40].any()
    assert not values[40:].any()


def test_a_crop_beyond_the_brain_is_refused(data: Path) -> None:
    with pytest.raises(ValueError, match="expected a crop within"):
        scans.brain_crop(data, (999, 10, 10))


def test_the_made_up_ct_has_all_labels_and_is_the_same_every_time() -> None:
    labels = scans.ct_labels((64, 64, 48))
    assert set(np.unique(labels)) == set(range(scans.CT_LABELS))
    np.testing.assert_array_equal(scans.ct_values((16, 14, 12)), scans.ct_values((16, 14, 12)))
    for axis in range(3):
        assert (labels != np.flip(labels, axis)).any()


def prepared_by_nnunet(folder: Path, scan: Path) -> np.ndarray:
    """[channel, z, y, x], by nnU-Net's own preprocessor."""
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = PlansManager(str(folder / "plans.json"))
    dataset = json.loads((folder / "dataset.json").read_text())
    configuration = plans.get_configuration("3d_fullres")
    return np.asarray(DefaultPreprocessor(verbose=False).run_case([str(scan)], None, plans, configuration, dataset)[0])


def labels_of(key: str, data: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The labels [z, y, x] that a network was trained on, on the grid of its prepared scan."""
    if key == "nnunet":
        maps = [nib.load(fetch_mni152(data)[kind]) for kind in ("gm", "wm")]
        middle = tuple(slice((n - r) // 2, (n + r) // 2) for n, r in zip(maps[0].shape, shape[::-1], strict=True))
        return tissue_labels(*(np.asanyarray(one.dataobj)[middle] for one in maps)).transpose(2, 1, 0)
    labels = scans.ct_labels((512, 512, 200)).transpose(2, 1, 0)
    nearest = [
        np.rint((np.arange(n) + 0.5) * m / n - 0.5).astype(int) for n, m in zip(shape, labels.shape, strict=True)
    ]
    return labels[np.ix_(*(places.clip(0) for places in nearest))]


@pytest.mark.parametrize(("key", "right"), [("nnunet", 0.85), pytest.param("nnunet-ct", 0.98, marks=pytest.mark.slow)])
def test_shipped_weights_know_what_they_were_trained_on(key: str, right: float, data: Path) -> None:
    """On one tile; shares of voxels a little below those of the model cards."""
    subject = subject_of(key, Settings(data.parent))
    volume = calibrate(subject.model.spec).scans[0].volume
    labels = labels_of(key, data, volume.shape[1:])
    tile = np.s_[:96, :96, :96]  # of the CT's tiles the first
    with torch.inference_mode():
        found = (
            load_network(subject.job)(torch.from_numpy(volume[(slice(None), *tile)].copy())[None]).argmax(1)[0].numpy()
        )
    assert (found == labels[tile]).mean() > right


def test_random_weights_are_those_that_the_last_layer_was_fitted_to(data: Path) -> None:
    """Noise would have neither half of the labels right nor a mask of compact regions."""
    network = load_network({**subject_of("swinunetr", Settings(data.parent)).job, "flash": True})
    values = nib.load(scans.brain_crop(data, (96, 96, 96))).get_fdata(dtype=np.float32)
    normal = (values - values.mean()) / values.std()
    with torch.inference_mode():
        found = network(torch.from_numpy(normal)[None, None]).argmax(1)[0].numpy()
    assert (found.transpose(2, 1, 0) == labels_of("nnunet", data, (96, 96, 96))).mean() > 0.6


@pytest.mark.parametrize("name", [nnunet.BRAIN, nnunet.CHEST])
def test_cards_name_the_weights_that_are_there(name: str) -> None:
    card = (nnunet.WEIGHTS / f"{name}.md").read_text()
    weights = nnunet.WEIGHTS / f"{name}.safetensors"
    assert file_sha256(weights) in card
    assert f"{weights.stat().st_size:,} bytes" in card
    assert "**Not for patients**" in card


def test_the_folder_is_one_that_nnunet_and_voxtile_build_read(data: Path) -> None:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    folder = nnunet.folder_of(nnunet.BRAIN, (32, 32, 32), data)
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False, perform_everything_on_device=False)
    predictor.initialize_from_trained_model_folder(str(folder), ("0",))
    predictor.network.load_state_dict(predictor.list_of_parameters[0])
    ours = models_of(folder, "one")[0].folds[0].load()
    x = torch.randn(1, 1, 64, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(predictor.network.eval()(x), ours(x))


def test_weights_of_another_network_are_refused() -> None:
    with pytest.raises(ValueError, match="plainconvunet-brain: expected the parameters of the plan's network"):
        nnunet.load_shipped(torch.nn.Conv3d(1, 1, 1), nnunet.BRAIN)


def test_nnunets_own_predictor_runs_from_file_to_file(data: Path, tmp_path: Path) -> None:
    scan, mask = scans.brain_crop(data, (96, 64, 64)), tmp_path / "mask.nii.gz"
    folder = nnunet.folder_of(nnunet.BRAIN, (64, 64, 64), data)
    answer = nnunet_scan({"folder": folder, "roi": (64,) * 3, "scan": scan, "mask": mask, "device": "cpu"})()
    image = nib.load(mask)
    np.testing.assert_allclose(image.affine, nib.load(scan).affine, atol=SAME)
    assert set(np.unique(np.asanyarray(image.dataobj))) <= {0, 1, 2}
    assert answer["tiles"] == 2
    assert 0 < answer["engine_seconds"] < answer["seconds"]


def test_nnunet_entries_are_calibrated_on_values_as_they_travel(tmp_path: Path) -> None:
    """Normalised, on the network's grid, in nnU-Net's order of axes: raw densities would give int8 other ranges."""
    folder = nnunet.folder_of(nnunet.CHEST, (16, 16, 16), tmp_path)
    scan = scans.ct_scan(tmp_path, (90, 80, 70))
    model = models_of(folder, "ct")[0]
    ready = nnunet.prepared(model.spec.nnunet or {}, scan)
    chosen = changed(model.spec, {"acceptance.scans": ((ready,),), "precision.calibration": ((ready,),)})
    for found in (gather_scans(chosen)[0], calibrate(chosen).scans[0]):
        np.testing.assert_allclose(found.volume, prepared_by_nnunet(folder, scan), atol=1e-4)
        assert found.spacing == (3.0,) * 3


def test_every_table_of_the_readme_has_its_workload(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is built: the rows of ours are left out, the others are those that are published."""
    monkeypatch.setattr("bench.entries.build_models", refuse)
    settings = Settings(data.parent)
    made = {one.name: one for section in ("unet", "swinunetr", "nnunet") for one in workloads(section, settings)}
    published = json.loads((ROOT / "docs" / "performance.json").read_text())["scans"]
    assert list(made) == list(dict.fromkeys(row["workload"] for row in published))
    for name, one in made.items():
        theirs = [row["row"] for row in published if row["workload"] == name and not row["row"].startswith("5")]
        assert [row.name for row in one.rows] == theirs
        assert one.title in {row["title"] for row in published}


def refuse(*_: Any, **__: Any) -> None:
    raise BuildError("not here")


def test_spec_changes_are_checked_again() -> None:
    fields = {
        "name": "one", "network": {"name": "Identity"}, "input": {"channels": ["any"]}, "output": {"labels": ["a"]},
        "tiling": {"roi_size": [8, 8, 8]},
    }  # fmt: skip
    spec = parse_spec(fields, "test", Path())
    assert changed(spec, {"input.dtype": "int16"}).input.dtype == "int16"
    with pytest.raises(ValueError, match="dtype"):
        changed(spec, {"input.dtype": "int17"})


def test_every_level_is_a_precision_that_a_spec_may_ask_for() -> None:
    for words in (*LEVELS.values(), {"openvino": REDUCED["cpu"]}, {"tensorrt": REDUCED["cuda"]}):
        assert Precision(**words).of(next(iter(words))) == next(iter(words.values()))


def test_entries_are_built_once_and_one_that_fails_takes_no_other_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(tmp_path, tiny=True)
    model = Model(spec(serving={"engines": ["openvino"]}), (Fold("tiny", tiny_unet),))
    exact = {"acceptance.min_dice": 1.0, "acceptance.max_changed": 0.0}
    variants: dict[str, Changes] = {
        "plain": {},
        "again": {"title": "another"},
        "half": {"precision.openvino": "bf16", "acceptance.max_abs_error": 1e-30, **exact},
        "wrong": {"tiling.overlap": 7},
    }
    made = build_entries(model, variants, settings)
    assert {name: sorted(entries) for name, entries in made.items()} == {
        "plain": ["openvino"], "again": ["openvino"], "half": [], "wrong": [],
    }  # fmt: skip
    assert [left["row"] for left in settings.left_out] == ["wrong", "half"]
    assert "max_abs_error" in settings.left_out[1]["reason"]
    capsys.readouterr()
    good = {name: variants[name] for name in ("plain", "again")}
    assert build_entries(model, good, settings) == {name: made[name] for name in good}
    assert "building" not in capsys.readouterr().err


def test_levels_that_the_table_of_engines_will_want_are_built_with_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Model(spec(serving={"engines": ["openvino"]}, acceptance=OPEN), (Fold("tiny", tiny_unet),))
    for sections, built in ((("unet",), ["unet-fp32"]), (("unet", "engines"), ["unet-fp32", "unet-bf16"])):
        settings = Settings(tmp_path / str(len(built)), quick=True, sections=sections)
        assert list(build_levels(model, "unet", ["fp32"], settings)) == ["fp32"]
        assert sorted({path.name for path in settings.repository.glob("unet-????")}) == sorted(built)
        assert capsys.readouterr().err.count("bench: building") == 1
    assert list(build_levels(model, "nnunet", ["bf16"], settings)["bf16"]) == ["openvino"]
    # The CT's network is in no table of engines: nothing is built for another engine than the served one.
    assert list(build_levels(model, "nnunet-ct", ["fp32"], settings)["fp32"]) == ["openvino"]


# The whole of it --------------------------------------------------------------------------------------------


WITHOUT_NNUNET = ",".join(section for section in SECTIONS if section not in ("nnunet", "swinunetr"))
"""These take minutes to build; what they are made of is tested above."""


@pytest.fixture(scope="module")
def out(data: Path) -> Path:
    """The results of a whole run on networks of no weight."""
    folder = data.parent
    arguments = ["--tiny", "--quick", "--out", str(folder), "--only", WITHOUT_NNUNET]
    done = subprocess.run([sys.executable, "-m", "bench", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.mark.slow
def test_every_file_appears(out: Path) -> None:
    for name in ("scans.json", "parts.json", "engines.json", "machine.json", "bench.md", "bench.svg"):
        assert (out / name).stat().st_size > 0
    assert (out / "bench.svg").read_text().startswith("<svg")
    facts = read(out / "machine.json")
    assert facts["cpu"]
    assert facts["cores"] >= 1
    assert facts["versions"]["torch"]
    assert all(rate > 0 for rate in facts["roofline"].values())


@pytest.mark.slow
def test_scans_have_every_way_and_every_column(out: Path) -> None:
    rows = read(out / "scans.json")
    assert all(set(row) >= SCAN_KEYS for row in rows)
    assert rows[0]["row"] == FIRST
    assert {row["row"][0] for row in rows if row["section"] == "unet"} == {"1", "4", "5"}
    first = {row["workload"]: row for row in reversed(rows)}
    assert list(first) == ["free 14", "free 1", "unet"]
    for row in rows:
        assert row["ratio"] == pytest.approx(first[row["workload"]]["seconds"] / row["seconds"], rel=0.02)
        assert row["overhead"] > 1
        assert row["peak_rss_bytes"] > 50 << 20
        assert 0 <= row["changed_fraction"] <= 1


@pytest.mark.slow
def test_ours_in_fp32_agrees_with_the_first_row(out: Path) -> None:
    rows = {(row["workload"], row["row"]): row for row in read(out / "scans.json")}
    assert rows["unet", "5 Voxtile fp32"]["changed_fraction"] < 1e-4


@pytest.mark.slow
def test_engines_are_against_pytorch_in_fp32(out: Path) -> None:
    rows = read(out / "engines.json")
    assert all(set(row) >= ENGINE_KEYS for row in rows)
    there = {(row["engine"], row["precision"]): row for row in rows}
    assert there["PyTorch", "fp32"]["ratio"] == 1
    for engine in ("openvino", "onnxruntime"):
        row = there[engine, "fp32"]
        expected = there["PyTorch", "fp32"]["seconds_per_roi"] / row["seconds_per_roi"]
        assert row["ratio"] == pytest.approx(expected, rel=0.1)
        assert row["changed_fraction"] < 1e-3


@pytest.mark.slow
def test_parts_tell_both_sides_of_each_comparison(out: Path) -> None:
    rows = read(out / "parts.json")
    parts = " ".join(row["part"] for row in rows)
    for part in ("resampling", "peak memory", "14 scores"):
        assert part in parts
    assert next(row["error"] for row in rows if row.get("error") is not None) < 1e-4
    assert any(row.get("predicted_peak_bytes") for row in rows)


@pytest.mark.slow
def test_the_page_shows_every_row(out: Path) -> None:
    text = (out / "bench.md").read_text()
    for row in read(out / "scans.json"):
        assert f"| {row['row']} |" in text


def test_a_later_run_of_one_section_keeps_the_others(tmp_path: Path) -> None:
    path = tmp_path / "parts.json"
    command.keep(path, "memory", [{"part": "a"}])
    command.keep(path, "resampling", [{"part": "b"}])
    command.keep(path, "memory", [{"part": "c"}])
    assert [row["part"] for row in read(path)] == ["b", "c"]


def test_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.parse(["--only", "memory,unet", "--out", str(tmp_path)]).sections == ("unet", "memory")
    assert command.parse([]).sections == SECTIONS
    with pytest.raises(SystemExit):
        command.parse(["--only", "nothing"])
    assert "expected some of" in capsys.readouterr().err


# Tables -----------------------------------------------------------------------------------------------------

FIGURES = {
    "machine": {"cpu": "a CPU", "cores": 2, "memory_bytes": 8 << 30, "quick": True, "roofline": {"copy GB/s": 10.0}},
    "scans": [
        {
            "section": "unet", "workload": "w", "title": "A network", "row": name,
            "seconds": seconds, "ratio": 12.0 / seconds,
            "seconds_low": seconds, "seconds_high": seconds, "runs": 3, "overhead": 1.02, "peak_rss_bytes": 300 << 20,
            "dice_min": 0.9991, "changed_fraction": 0.0004,
        }
        for name, seconds in ((FIRST, 12.0), ("5 ours", 1.5))
    ],
}  # fmt: skip


def test_the_page_of_results_holds_the_figures() -> None:
    content = tables_block(FIGURES)
    assert "#### A network" in content
    assert "| 5 ours | 8.00× | 1.5 (1.5–1.5) | 1.02 | 300 MiB | 0.9991 | 0.04 % |" in content
    assert "a CPU, 2 cores" in content
    assert "A quick run" in content
    assert readme.NO_GPU in content
    assert tables_block({"machine": {}, "scans": []}) == readme.NO_FIGURES


def test_the_page_of_results_holds_every_part_and_what_is_missing() -> None:
    def part(section: str, name: str) -> dict[str, Any]:
        return {"section": section, "part": name, "way": "Voxtile", "ratio": 2.0, "seconds": 1.0}

    engine = {"network": "unet", "engine": "openvino", "precision": "int8", "batch": 2, "ratio": 9.0}
    engine |= {"seconds_per_roi": 0.5, "dice_min": 0.997, "changed_fraction": 0.001}
    missing = [{"where": "unet", "row": "auto", "reason": "it took too long"}]
    parts = [part("transport", "the wire"), part("memory", "peak memory, 14 scores")]
    wire = {**FIGURES["scans"][0], "section": "transport", "workload": "wire", "title": "A network that costs nothing"}
    scans_too = {**FIGURES, "scans": [*FIGURES["scans"], wire]}
    published = {**scans_too, "parts": parts, "engines": [engine], "left_out": missing}
    page = tables_block(published)
    for heading in ("A network", "A network that costs nothing", "the wire", "peak memory, 14 scores"):
        assert f"#### {heading}\n" in page
    assert "| openvino | int8 | 2 | 9.00× | 0.5 | 0.9970 | 0.1 % |" in page
    assert "- unet: auto: it took too long" in page


def test_the_block_round_trips() -> None:
    text = f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n"
    once = with_block(text, tables_block(FIGURES))
    assert block_of(once) == tables_block(FIGURES)
    assert with_block(once, tables_block(FIGURES)) == once
    assert with_block(once, "old") == text
    with pytest.raises(ValueError, match="once each"):
        with_block("no markers", "x")


def test_a_run_is_adopted_without_a_trace_of_where_it_was_made(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for page in ("README.md", "docs/performance.md"):
        (tmp_path / page).write_text(
            "\n".join(["a", *readme.BENCH, "b", *readme.GPU, *readme.STUDENTS, *readme.COHORT, ""])
        )
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "scans.json").write_text(json.dumps(FIGURES["scans"]))
    missing = {"where": "w", "row": "r", "reason": f"no file {ROOT}/x"}
    facts = {**FIGURES["machine"], "system": "secret", "left_out": [missing]}
    (tmp_path / "run" / "machine.json").write_text(json.dumps(facts))
    assert readme.main(["adopt", str(tmp_path / "run")], tmp_path) == 0
    published = read(tmp_path / "docs" / "performance.json")
    assert "secret" not in json.dumps(published)
    assert str(ROOT) not in json.dumps(published)
    assert block_of((tmp_path / "README.md").read_text()) == summary_block(published)
    assert block_of((tmp_path / "docs/performance.md").read_text()) == tables_block(published)


def test_the_readme_shows_the_published_figures() -> None:
    published = read(ROOT / "docs" / "performance.json")
    assert block_of((ROOT / "README.md").read_text(encoding="utf-8")) == summary_block(published)
    assert block_of((ROOT / "docs" / "performance.md").read_text(encoding="utf-8")) == tables_block(published)
    assert (ROOT / "docs" / readme.CHART).read_text(encoding="utf-8") == chart.draw(summary.lines(published))


def test_empty_columns_are_left_out() -> None:
    columns: tuple[tables.Column, ...] = (("a", lambda row: row["a"]), ("b", lambda row: ""))
    assert tables.table([{"a": "1"}], columns) == "| a |\n| --- |\n| 1 |"


def test_numbers_are_short() -> None:
    assert [tables.number(value) for value in (0.012345, 1.2345, 123.45, None)] == ["0.0123", "1.23", "123", ""]
    assert [tables.share(value) for value in (0.0, 0.00001, 0.0123)] == ["0", "1.0e-05", "1.23 %"]


def test_windows_of_the_baseline_are_monais_own(data: Path, tmp_path: Path) -> None:
    scan, mask = scans.brain_crop(data, (40, 36, 33)), tmp_path / "mask.nii.gz"
    subject = subject_of("unet", Settings(data.parent, tiny=True))
    answer = WindowedScan({**subject.job, "scan": scan, "mask": mask, "single": 2})()
    values = normalised(nib.load(scan).get_fdata(dtype=np.float32), nonzero=True)
    with torch.inference_mode():
        network = load_network(subject.job)
        scores = sliding_window_inference(torch.from_numpy(values)[None, None], (32,) * 3, 1, network, 0.25, "gaussian")
    np.testing.assert_array_equal(np.asanyarray(nib.load(mask).dataobj), scores.argmax(1)[0].numpy())
    over = scores.softmax(1)[0, 2].numpy() > 0.5
    np.testing.assert_array_equal(np.asanyarray(nib.load(single_path(mask)).dataobj), 2 * over)
    assert 0 < answer["engine_seconds"] < answer["seconds"]
    assert answer["tiles"] == 8
