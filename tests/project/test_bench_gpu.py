"""The benchmark of a GPU: its rehearsal on the CPU, its stages' limits, its arithmetic, and its page."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bench import readme
from bench.figures import agreement as agreement_on_cpu
from bench.gpu import __main__ as command
from bench.gpu import phantom, rates, scan, tiles, timing, ways
from bench.gpu.agreement import agreement, dice_loss
from bench.gpu.networks import Largest, Subject, fit_head, last_layer, subject_of
from bench.gpu.report import NO_RUN, gpu_block, tables
from bench.gpu.run import Stage, keep, run_stages
from bench.gpu.settings import LONGEST_ERROR, Row, Settings, in_one_line
from bench.gpu.stages import STAGES
from bench.gpu.ways import Way, open_way
from tests.support.gpu_stages import dying, failing, good, hanging
from voxtile.card import Tiling
from voxtile.tiling.plan import plan_tiles

ROOT = Path(__file__).parents[2]
COMPILING = [stage.name for stage in STAGES if stage.name.endswith(("aot", "aot-scan", "compile", "autotuned"))]
"""The stages that run a C++ compiler: minutes on a busy machine."""
QUICK = [stage.name for stage in STAGES if stage.name not in COMPILING]
CLOSE = 1e-4
"""Between two ways to add up fp32 scores."""


@pytest.fixture
def tiny(tmp_path: Path) -> Settings:
    return Settings("cpu", tmp_path, tiny=True)


# The rehearsal ----------------------------------------------------------------------------------------------------


def rehearsed(stages: list[str], folder: Path) -> dict[str, Any]:
    """The JSON of a whole run at tiny size, through the command."""
    out = folder / "gpu.json"
    command_line = [sys.executable, "-m", "bench.gpu", "--tiny", "--device", "cpu", "--minutes", "60", "--out"]
    paths = os.pathsep.join(str(ROOT / name) for name in ("client", "build", "server", "."))
    done = subprocess.run(
        [*command_line, str(out), "--stages", ",".join(stages)], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    result: dict[str, Any] = json.loads(out.read_text())
    assert done.stdout == tables(result) + "\n"
    return result


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return rehearsed(QUICK, tmp_path_factory.mktemp("gpu"))


def rows_of(result: dict[str, Any], stage: str) -> list[Row]:
    rows: list[Row] = result["stages"][stage]["rows"]
    return rows


def test_every_stage_of_the_rehearsal_ends(rehearsal: dict[str, Any]) -> None:
    assert list(rehearsal["stages"]) == QUICK
    assert {name: stage["ended"] for name, stage in rehearsal["stages"].items()} == dict.fromkeys(QUICK, "done")
    failed = {name for name in QUICK if any("error" in row for row in rows_of(rehearsal, name))}
    assert failed == {"swinunetr-tensorrt", "nnunet-tensorrt"}
    assert "tensorrt" in rows_of(rehearsal, "nnunet-tensorrt")[1]["error"]
    assert rehearsal["tiny"] is True


def test_the_machine_has_its_rates(rehearsal: dict[str, Any]) -> None:
    measured = {row["what"]: row["rate"] for row in rows_of(rehearsal, "machine")}
    assert set(measured) == {"copy", *(f"matmul {kind}" for kind in ("bf16", "fp16", "tf32", "fp32"))}
    assert all(rate > 0 for rate in measured.values())


@pytest.mark.parametrize("key", ["swinunetr", "nnunet"])
def test_tiles_have_every_way_and_figure(rehearsal: dict[str, Any], key: str) -> None:
    about, *rows = rows_of(rehearsal, key)
    wanted = [way for way in tiles.EAGER if key == "swinunetr" or not way.fused or way.dtype == "fp16"]
    assert len(rows) == 2 * len(wanted)
    assert {row["way"] for row in rows} >= {
        "PyTorch fp32",
        "PyTorch tf32",
        "PyTorch bf16 channels last",
        "PyTorch fp16",
    }
    peak = next(row["rate"] for row in rows_of(rehearsal, "machine") if row["what"] == "matmul bf16")
    for row in rows:
        assert row["finite"]
        assert row["ms_low"] <= row["ms"] <= row["ms_high"]
        assert row["ms_per_roi"] == pytest.approx(row["ms"] / row["batch"], rel=1e-3)
        assert row["share"] == pytest.approx(about["gflop"] / row["ms_per_roi"] / peak, rel=1e-2)
    assert [row["changed_fraction"] for row in rows if row["way"] == "PyTorch fp32"] == [0, 0]
    assert max(row["relative_error"] for row in rows if row["way"] == "PyTorch fp32") < CLOSE
    assert 1e-4 < next(row["relative_error"] for row in rows if row["way"] == "PyTorch bf16") < 0.3


@pytest.mark.parametrize("key", ["swinunetr", "nnunet"])
def test_the_scan_goes_from_memory_and_from_files(rehearsal: dict[str, Any], key: str) -> None:
    rows = rows_of(rehearsal, f"{key}-scan")
    assert [row["what"] for row in rows] == [
        "memory to memory", "file to file, .nii", "file to file, .nii.gz", "memory to memory", "memory to memory",
    ]  # fmt: skip
    assert [row["way"][:5] for row in rows[3:]] == ["MONAI"] * 2
    assert rows[0]["dice_min"] > 0.9
    assert all(0 < row["network_seconds"] <= row["seconds"] for row in rows[:3])
    assert all(row["tiles"] == 8 for row in rows[:3])


def test_copies_work_together(rehearsal: dict[str, Any]) -> None:
    for stage, counts in (("instances", {1, 2}), ("gpus", {1, 2})):
        rows = rows_of(rehearsal, stage)
        assert {row["count"] for row in rows} == counts
        assert all(row["tiles_per_second"] > 0 for row in rows)
        assert rows[0]["scaling"] == 1


@pytest.mark.slow
def test_what_compiles_is_rehearsed_too(tmp_path: Path) -> None:
    stages = ["machine", *COMPILING]
    result = rehearsed(stages, tmp_path)
    assert {name: stage["ended"] for name, stage in result["stages"].items()} == dict.fromkeys(stages, "done")
    for name in COMPILING:
        rows = rows_of(result, name)
        assert not [row["error"] for row in rows if "error" in row]
        assert all(row["dice_min"] > 0.9 for row in rows if "dice_min" in row)
    assert rows_of(result, "nnunet-aot-scan")[0]["way"].startswith("AOTInductor")


# Stages and their limits --------------------------------------------------------------------------------------------


def test_a_stage_that_fails_dies_or_hangs_is_told_in_one_line_and_passed_over(tiny: Settings, tmp_path: Path) -> None:
    stages = [
        Stage("good", 1, good), Stage("failing", 1, failing), Stage("dying", 1, dying),
        Stage("hanging", 0.05, hanging), Stage("last", 1, good),
    ]  # fmt: skip
    result = run_stages(stages, tiny, tmp_path / "out.json", 5, {"machine": {"cpu": "a CPU"}})
    assert {name: stage["ended"] for name, stage in result["stages"].items()} == {
        "good": "done",
        "failing": "failed: MemoryError: CUDA out of memory.",
        "dying": "the process ended with 7",
        "hanging": "cut off after 3 s",
        "last": "done",
    }
    assert [row["what"] for row in rows_of(result, "good")] == ["one", "two"]
    for name in ("failing", "dying", "hanging"):
        assert [row["what"] for row in rows_of(result, name)] == ["before"]
    assert rows_of(result, "last")[0]["known"] == ["dying", "failing", "good", "hanging", "last"]
    assert json.loads((tmp_path / "out.json").read_text()) == result
    assert result["machine"] == {"cpu": "a CPU"}
    assert not alive(rows_of(result, "hanging")[0]["child"])


def alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def test_no_stage_is_begun_without_time(tiny: Settings, tmp_path: Path) -> None:
    result = run_stages([Stage("good", 1, good)], tiny, tmp_path / "out.json", 0, {})
    assert result["stages"]["good"] == {"rows": [], "ended": "not begun: no time was left"}
    assert json.loads((tmp_path / "out.json").read_text()) == result


CUT_OFF = """
import sys
from pathlib import Path
from bench.gpu.run import Stage, run_stages
from bench.gpu.settings import Settings
from tests.support.gpu_stages import good, hanging
if __name__ == "__main__":
    stages = [Stage("good", 1, good), Stage("hanging", 5, hanging)]
    run_stages(stages, Settings("cpu", Path(sys.argv[1]), True), Path(sys.argv[1]) / "out.json", 9, {})
"""


def test_a_run_that_is_killed_has_left_whole_json_of_what_was_finished(tmp_path: Path) -> None:
    (tmp_path / "cut_off.py").write_text(CUT_OFF)
    paths = os.pathsep.join(str(ROOT / name) for name in ("client", "build", "server", "."))
    run = subprocess.Popen(
        [sys.executable, tmp_path / "cut_off.py", tmp_path], cwd=ROOT, env={**os.environ, "PYTHONPATH": paths}
    )
    out, end = tmp_path / "out.json", time.monotonic() + 120
    while not (out.exists() and "hanging" in out.read_text()) and time.monotonic() < end:
        json.loads(out.read_text()) if out.exists() else time.sleep(0.01)
    run.kill()
    run.wait()
    result = json.loads(out.read_text())
    child = rows_of(result, "hanging")[0]["child"]
    group = os.getpgid(child)
    assert group != os.getpgrp()
    os.killpg(group, signal.SIGKILL)
    assert result["stages"]["good"]["ended"] == "done"
    assert [row["what"] for row in rows_of(result, "good")] == ["one", "two"]
    assert result["stages"]["hanging"]["ended"] == "running"


def test_json_is_never_seen_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.json"
    keep({"a": 1}, out)
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(OSError, match="no space"):
        keep({"a": 2}, out)
    assert json.loads(out.read_text()) == {"a": 1}


def test_the_most_valuable_stages_come_first() -> None:
    names = [stage.name for stage in STAGES]
    assert names[:3] == ["machine", "swinunetr", "swinunetr-scan"]
    assert len(set(names)) == len(names)
    first = [stage.minutes for stage in STAGES[:5]]
    assert sum(first) <= 13


def test_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = command.parse(["--tiny", "--device", "cpu", "--stages", "nnunet,machine", "--minutes", "2"])
    assert (chosen.stages, chosen.minutes, chosen.tiny) == (["nnunet", "machine"], 2, True)
    for wrong, said in (
        (["--tiny", "--stages", "nothing"], "expected some of machine,"),
        (["--device", "cpu"], "give --tiny to rehearse"),
        *([] if torch.cuda.is_available() else [(["--device", "cuda"], "PyTorch finds no GPU")]),
    ):
        with pytest.raises(SystemExit):
            command.parse(wrong)
        assert said in capsys.readouterr().err


@given(st.text())
def test_an_error_is_one_line(text: str) -> None:
    told = in_one_line(ValueError(text))
    assert told.startswith("ValueError")
    assert len(told.splitlines()) == 1
    assert len(told) <= LONGEST_ERROR


NEEDED = """
import sys
for name in ("voxtile_build", "tritonclient", "onnx", "scipy", "nnunetv2", "tensorrt", "safetensors", "nibabel"):
    sys.modules[name] = None
from bench.gpu import __main__
from bench.gpu.scan import plan_of
from voxtile.tiling import on_device
from bench.gpu.networks import subject_of
from bench.gpu.settings import Settings
subject = subject_of("swinunetr", Settings("cpu", None, True))
print(len(plan_of(subject)), sum(one.numel() for one in subject.work and [subject.labels]))
"""


def test_a_machine_needs_little_more_than_pytorch() -> None:
    paths = os.pathsep.join(str(ROOT / name) for name in ("client", "."))
    told = subprocess.run(
        [sys.executable, "-c", NEEDED],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert told.stdout == "8 4096\n", told.stderr[-2000:]


# Networks and ways --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "gflop"), [("swinunetr", 637), ("nnunet", 956)])
def test_the_full_networks_are_those_whose_operations_are_known(key: str, gflop: float, tmp_path: Path) -> None:
    """Counted by hand elsewhere, in 10⁹; nothing is computed."""
    operations, elements = subject_of(key, Settings("cpu", tmp_path)).work
    assert operations / 1e9 == pytest.approx(gflop, rel=0.01)
    attention, joined = 3 * 343**3, 64 * 128**3  # 343 windows of 343 tokens with 3 heads; both halves of the last level
    assert elements == {"swinunetr": attention, "nnunet": joined}[key]


def test_the_largest_tensor_is_found() -> None:
    with Largest() as largest:
        torch.cat([torch.zeros(3, 5), torch.ones(4, 5)])
    assert largest.elements == 35


def test_a_tensor_that_is_too_large_is_not_tried(tiny: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    elements = subject_of("nnunet", tiny).work[1]
    monkeypatch.setattr(tiles, "INDEX_LIMIT", 2 * elements)
    rows = list(tiles.measure(tiny, {}, "nnunet", [Way()]))[1:]
    assert ["error" in row for row in rows] == [False, True]
    assert rows[1]["error"].startswith(
        f"ValueError: expected tensors of fewer than 2^31 elements, found {2 * elements:,}"
    )


def test_a_way_that_fails_hides_no_other(tiny: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ways.MAKERS, "aot", lambda *_: (_ for _ in ()).throw(RuntimeError("no compiler\nat all")))
    rows = list(tiles.measure(tiny, {}, "nnunet", [Way("aot"), Way()]))[1:]
    assert [row.get("error") for row in rows] == ["RuntimeError: no compiler"] * 2 + [None] * 2
    assert "share" not in rows[-1]  # no rate is known


def test_every_stage_has_the_same_weights(tiny: Settings) -> None:
    states = [subject_of("swinunetr", tiny).network(fused).state_dict() for fused in (False, True)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    tile = subject_of("swinunetr", tiny).tiles(1)
    torch.testing.assert_close(*(subject_of("swinunetr", tiny).network(fused)(tile) for fused in (False, True)))


def test_the_last_layer_knows_the_labels(tiny: Settings) -> None:
    subject = subject_of("swinunetr", tiny)
    with torch.no_grad():
        found = subject.network()(subject.tiles(1)).argmax(1)[0]
    assert (found == subject.labels).float().mean() > 0.95


def test_a_linear_problem_is_fitted_exactly() -> None:
    network = nn.Sequential(nn.Identity(), nn.Conv3d(1, 2, 1))
    values = torch.tensor([0.0, 1.0, 0.0, 1.0]).reshape(1, 1, 4, 1, 1)
    fit_head(network, values, torch.tensor([0, 1, 0, 1]).reshape(4, 1, 1), 2)
    with torch.no_grad():
        found = network(values)[0, :, :, 0, 0]
    torch.testing.assert_close(found, 8.0 * torch.tensor([[1.0, 0, 1, 0], [0, 1, 0, 1]]), atol=0.1, rtol=0)
    assert last_layer(network, 2) is network[1]


def test_ways_compute_in_their_types_and_layouts(tiny: Settings) -> None:
    subject = subject_of("nnunet", tiny)
    for way, dtype in (
        (Way(), torch.float32), (Way(dtype="bf16"), torch.bfloat16), (Way(dtype="fp16"), torch.float16),
        (Way(dtype="bf16", autocast=True), torch.bfloat16),
    ):  # fmt: skip
        with torch.no_grad():
            assert open_way(subject, way, 1)(subject.tiles(1)).dtype == dtype
    typed = ways.Typed(subject.network(), Way(dtype="bf16", last=True))
    weight = max((one for one in typed.parameters() if one.ndim == 5), key=torch.numel)
    assert weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert weight.dtype == torch.bfloat16
    assert {one.dtype for one in ways.Typed(subject.network(), Way(dtype="fp16", autocast=True)).parameters()} == {
        torch.float32
    }


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_is_what_a_way_says(tiny: Settings, allowed: bool) -> None:
    before = torch.backends.cudnn.allow_tf32
    try:
        rates.allow_tf32(not allowed)
        open_way(subject_of("nnunet", tiny), Way(dtype="tf32" if allowed else "fp32"), 1)
        assert torch.backends.cuda.matmul.allow_tf32 is allowed
        assert torch.backends.cudnn.allow_tf32 is allowed
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = before


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_a_graph_needs_a_gpu(tiny: Settings) -> None:
    with pytest.raises(RuntimeError, match="expected a GPU for a CUDA graph, found a CPU"):
        open_way(subject_of("nnunet", tiny), Way(graph=True), 1)


def test_names_tell_ways_apart() -> None:
    every = [*tiles.EAGER, *tiles.AOT, *tiles.COMPILED, *tiles.AUTOTUNED, *tiles.TENSORRT, Way(graph=True)]
    assert len({way.name for way in every}) == len(every)
    assert Way("aot", "bf16", last=True, fused=True, graph=True).name == (
        "AOTInductor bf16 channels last fused attention CUDA graph"
    )


def test_the_fastest_way_that_keeps_dice_is_chosen() -> None:
    def row(way: str, ms: float, loss: float = 0.0, **more: Any) -> Row:
        return {
            "network": "nnunet",
            "way": way,
            "batch": 4,
            "ms_per_roi": ms,
            "dice_loss": loss,
            "finite": True,
            **more,
        }

    known = {
        "nnunet": [
            row("PyTorch bf16 channels last", 3), row("PyTorch fp16", 1, 0.006), row("PyTorch tf32", 1, finite=False),
            row("PyTorch fp32", 9), row("PyTorch bf16", 2, network="swinunetr"),
            {"network": "nnunet", "way": "PyTorch bf16", "batch": 8, "error": "no memory"},
        ],
        "nnunet-aot": [row("AOTInductor bf16 channels last", 0.5, batch=16)],
    }  # fmt: skip
    assert scan.fastest(known, "nnunet", ("eager",)) == (Way(dtype="bf16", last=True), 4)
    assert scan.fastest(known, "nnunet", ("eager", "aot")) == (Way("aot", "bf16", last=True), 16)
    assert scan.fastest({"a": [row("PyTorch fp16", 1, 0.006)]}, "nnunet", ("eager",)) == (Way(dtype="fp16"), 4)
    assert scan.fastest({}, "nnunet", ("eager",)) is None


def test_a_scan_by_a_package_that_was_not_made_says_so(tiny: Settings) -> None:
    with pytest.raises(LookupError, match="expected tiles that were measured by aot, found none"):
        next(scan.measure(tiny, {}, "nnunet", ("aot",)))


# Arithmetic ---------------------------------------------------------------------------------------------------------


def test_the_scan_is_the_same_whatever_the_batch(tiny: Settings) -> None:
    """36 tiles in calls of 5: the last call is filled up, and what fills it counts for nothing."""
    plan = plan_tiles(tiny.scan_shape, (12, 12, 12), Tiling(overlap=0.5))
    assert len(plan) % 5
    seen: list[int] = []

    def network(windows: torch.Tensor) -> torch.Tensor:
        seen.append(len(windows))
        return torch.cat([windows < -1, (windows >= -1) & (windows < 0.5), windows >= 0.5], 1).to(torch.float16)

    values = scan.scan_of(tiny)
    one, five = (scan.Pass(plan, network, batch, tiny)(values)[0] for batch in (1, 5))
    assert set(seen[len(plan) :]) == {5}
    assert torch.equal(one, five)
    assert (one == phantom.labels_of(tiny.scan_shape, 3, "cpu")).float().mean() > 0.95


def test_files_hold_the_scan_and_its_mask(tiny: Settings) -> None:
    assert not [row["error"] for row in scan.measure(tiny, {}, "nnunet", ("eager",)) if "error" in row]
    for ending in (".nii", ".nii.gz"):
        values, mask = (np.asanyarray(nib.load(tiny.work / f"{name}{ending}").dataobj) for name in ("scan", "mask"))
        np.testing.assert_array_equal(values, scan.scan_of(tiny).numpy())
        assert mask.dtype == np.uint8
        assert set(np.unique(mask)) == {0, 1, 2}


def test_agreement_is_that_of_the_other_benchmark() -> None:
    rng = np.random.default_rng(4)
    one, other = (rng.integers(0, 4, (6, 7, 8)).astype(np.uint8) for _ in range(2))
    found = agreement(torch.from_numpy(one), torch.from_numpy(other), 5)
    assert found == pytest.approx(agreement_on_cpu(one, other), rel=1e-3)
    assert agreement(torch.zeros(3), torch.zeros(3), 2) == {"dice_min": 1, "changed_fraction": 0}
    with pytest.raises(ValueError, match=r"expected labels of shape \(2,\), found \(3,\)"):
        agreement(torch.zeros(2), torch.zeros(3), 2)


def test_lost_dice_is_that_of_the_worst_label() -> None:
    truth = torch.tensor([0, 1, 1, 2, 2, 2])
    worse = torch.tensor([0, 1, 1, 2, 2, 0])
    assert dice_loss(truth, truth, worse, 3) == pytest.approx(1 - 4 / 5, abs=1e-5)
    assert dice_loss(truth, worse, truth, 4) == 0


def test_the_phantom_shows_every_label_and_is_no_mirror_image() -> None:
    labels = phantom.labels_of((60, 50, 40), 14, "cpu")
    assert labels.unique().tolist() == list(range(14))
    for axis in range(3):
        assert (labels != labels.flip(axis)).any()
    with pytest.raises(ValueError, match="expected at most 14 labels, found 15"):
        phantom.labels_of((8, 8, 8), 15, "cpu")
    assert torch.equal(phantom.values_of(labels, 14, 1), phantom.values_of(labels, 14, 1))


def test_timings_are_of_the_call(tiny: Settings) -> None:
    told = timing.timed(partial(time.sleep, 0.01), tiny)
    assert 10 <= told["ms_low"] <= told["ms"] <= told["ms_high"]
    assert timing.spread([3.0, 1.0, 2.0]) == {"ms": 2, "ms_low": 1, "ms_high": 3, "runs": 3}
    assert timing.digits(1234567) == 1235000


# The page -----------------------------------------------------------------------------------------------------------

FIGURES: dict[str, Any] = {
    "machine": {
        "torch": "2.11.0", "cpu": "a CPU", "cores": 16, "gpu": "a GPU", "gpus": 1, "memory_bytes": 139 << 30,
        "cuda": "13.0", "cudnn": 91100,
    },
    "device": "cuda", "tiny": False, "minutes": 13, "seconds": 600.0,
    "stages": {
        "machine": {"ended": "done", "rows": [{"what": "copy", "rate": 4300.0, "unit": "GB/s"}]},
        "swinunetr": {
            "ended": "cut off after 150 s",
            "rows": [
                {"network": "swinunetr", "title": "SwinUNETR 48", "roi": [96, 96, 96], "gflop": 637.0},
                {
                    "network": "swinunetr", "way": "PyTorch bf16", "batch": 4, "ms_per_roi": 2.5, "ms": 10.0,
                    "ms_low": 9.9, "ms_high": 10.5, "runs": 50, "share": 0.32, "peak_bytes": 3 << 30, "finite": True,
                    "dice_min": 0.9987, "changed_fraction": 0.0012, "dice_loss": 0.0004,
                },
                {"network": "swinunetr", "way": "PyTorch bf16", "batch": 16, "error": "OutOfMemoryError: too much"},
            ],
        },
        "swinunetr-scan": {
            "ended": "done",
            "rows": [
                {
                    "what": "memory to memory", "network": "swinunetr", "way": "PyTorch bf16", "batch": 4, "tiles": 196,
                    "seconds": 0.58, "seconds_low": 0.57, "seconds_high": 0.6, "runs": 5, "network_seconds": 0.5,
                }
            ],
        },
        "gpus": {"ended": "failed: RuntimeError: expected several GPUs, found 1", "rows": []},
    },
}  # fmt: skip


def test_the_page_shows_a_run_with_its_machine_and_what_is_missing() -> None:
    page = gpu_block(FIGURES)
    assert page.startswith("1 × a GPU (139 GiB), a CPU, 16 cores; PyTorch 2.11.0, CUDA 13.0, cuDNN 91100; ")
    assert "the run took 10.0 minutes." in page
    assert "| copy | 4300 | GB/s |" in page
    assert "#### SwinUNETR 48, tiles of 96×96×96, 637 × 10⁹ operations a tile" in page
    assert "| PyTorch bf16 | 4 | 2.5 | 10 (9.9–10.5) | 32 % | 3,072 MiB | 0.9987 | 0.12 % | 0.0004 |" in page
    assert "| memory to memory | PyTorch bf16 | 4 | 196 | 0.58 (0.57–0.6) | 0.5 |" in page
    assert "- swinunetr: PyTorch bf16 at a batch of 16: OutOfMemoryError: too much" in page
    assert "- swinunetr: cut off after 150 s" in page
    assert "- gpus: failed: RuntimeError: expected several GPUs, found 1" in page
    assert "rehearsal" not in page


def test_a_rehearsal_is_never_published(tmp_path: Path) -> None:
    assert "A rehearsal at tiny sizes: its figures mean nothing." in tables({**FIGURES, "tiny": True})
    for wrong in ({"tiny": True}, {"device": "cpu"}):
        with pytest.raises(ValueError, match="found a rehearsal"):
            gpu_block({**FIGURES, **wrong})
    site = published_site(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({**FIGURES, "tiny": True}))
    with pytest.raises(ValueError, match="found a rehearsal"):
        readme.main(["adopt-gpu", str(tmp_path / "run.json")], site)
    assert not (site / "docs" / "performance-gpu.json").exists()


def test_a_run_is_published_beside_the_cpus(tmp_path: Path) -> None:
    site = published_site(tmp_path)
    page = site / "docs" / "performance.md"
    assert readme.main(["write"], site) == 0
    assert readme.block_of(page.read_text(), readme.GPU) == NO_RUN
    (tmp_path / "run.json").write_text(json.dumps(FIGURES))
    assert readme.main(["adopt-gpu", str(tmp_path / "run.json")], site) == 0
    assert readme.main(["write"], site) == 0
    assert readme.block_of(page.read_text(), readme.GPU) == gpu_block(FIGURES)
    assert readme.block_of(page.read_text()) == readme.tables_block({"machine": {}, "scans": []})


def published_site(folder: Path) -> Path:
    """A project of the pages that figures are written into."""
    site = folder / "site"
    (site / "docs").mkdir(parents=True)
    for page in ("README.md", "docs/performance.md"):
        (site / page).write_text(
            "\n".join(["a", *readme.BENCH, "b", *readme.GPU, "c", *readme.STUDENTS, *readme.COHORT, ""])
        )
    (site / "docs" / "performance.json").write_text(json.dumps({"machine": {}, "scans": []}))
    return site


def test_the_page_is_of_the_published_run() -> None:
    file = ROOT / "docs" / "performance-gpu.json"
    figures = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert readme.block_of(page, readme.GPU) == gpu_block(figures)


def test_subjects_are_told_apart() -> None:
    assert {subject_of(key, Settings("cpu", Path())).title for key in ("swinunetr", "nnunet")} == {
        "SwinUNETR 48", "nnU-Net PlainConvUNet 32…320",
    }  # fmt: skip
    assert isinstance(subject_of("nnunet", Settings("cpu", Path())), Subject)
