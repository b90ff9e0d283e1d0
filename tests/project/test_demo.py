"""The two ends of `make demo`: what it builds with, which sample it compares, and what it says at the end."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers import sliding_window_inference
from monai.metrics import compute_dice
from monai.networks.utils import one_hot

from models import demo
from tests.support.cards import card
from voxtile.card import Card, Tiling
from voxtile.tiling.plan import plan_tiles
from voxtile_build.engines.openvino.variants import has_bf16
from voxtile_build.importers.settings import spec_with_settings

ROOT = Path(__file__).parents[2]


def labelled(names: list[str], **changes: Any) -> dict[str, Any]:
    """The fields of a card with these labels."""
    output = {"kind": "logits", "dtype": "fp32", "scores": len(names)}
    return card(labels=[{"name": name, "value": value} for value, name in enumerate(names)], output=output, **changes)


def commands(*arguments: str) -> list[str]:
    """What make would run."""
    done = subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.replace("\\\n\t", " ").splitlines()


# The order of the commands


def test_the_demo_builds_points_segments_and_tells_in_that_order() -> None:
    lines = [line for line in commands("demo", "OUT=elsewhere", "DEMO_MODEL=mine") if "pip install" not in line]
    wanted = [
        "mni152.py elsewhere",
        "models.demo settings elsewhere",
        "voxtile-build spec models/mine.toml --settings elsewhere/demo.toml",
        "voxtile-build point mine fastest",
        "segment elsewhere/mni152_t1.nii.gz --model mine --output elsewhere/mask.nii.gz",
        "models.demo gain elsewhere --model mine --started",
    ]
    places = [
        next(place for place, line in enumerate(lines) if " ".join(line.split()).find(one) >= 0) for one in wanted
    ]
    assert places == sorted(places)
    started = float(lines[places[-1]].split("--started")[1])
    assert 0 <= time.time() - started < 60


def test_the_demo_installs_what_a_user_needs_and_the_tests_the_rest(tmp_path: Path) -> None:
    fresh = f"VENV={tmp_path}"
    for verb in ("demo", "build", "serve"):
        assert "requirements-dev.txt" not in " ".join(commands(verb, fresh)), verb
        assert "--editable build" in " ".join(commands(verb, fresh)), verb
    for verb in ("setup", "test", "check", "docs", "bench"):
        assert "requirements-dev.txt" in " ".join(commands(verb, fresh)), verb
        assert "--editable build" in " ".join(commands(verb, fresh)), verb


# What it is built with


def test_the_settings_ask_for_what_the_machine_computes_in_and_certify_on_the_demos_scan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main(["settings", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'demo.toml'}\n"
    spec = spec_with_settings(ROOT / "models/brain-unet.toml", tmp_path / "demo.toml")
    assert spec.precision.openvino == ("bf16" if has_bf16() else "fp32")
    assert spec.precision.onnxruntime == "fp32"
    assert spec.serving.engines == ("onnxruntime", "openvino")
    assert spec.acceptance.scans == ((tmp_path / "mni152_t1.nii.gz",),)


# The sample


@settings(deadline=None, max_examples=15)
@given(st.tuples(*[st.integers(8, 37)] * 3), st.sampled_from([0.25, 0.5]), st.sampled_from(["gaussian", "constant"]))
def test_the_sample_is_what_monai_gives_for_the_whole_scan(shape: tuple[int, ...], overlap: float, mode: str) -> None:
    """The network is one that sees where in its window a voxel lies, so another window would give another score."""
    roi = (8, 8, 8)
    place = torch.arange(512, dtype=torch.float32).reshape(roi)
    scan = torch.from_numpy(np.random.default_rng(3).normal(size=(1, 1, *shape)).astype(np.float32))
    tiling = Tiling(semantics="monai", overlap=overlap, mode=mode)
    ran: list[int] = []

    def network(windows: torch.Tensor) -> torch.Tensor:
        ran.append(len(windows))
        return torch.cat([windows * place, windows + place], 1)

    def by_monai(x: torch.Tensor) -> torch.Tensor:
        scores = sliding_window_inference(x, roi, 4, network, overlap=overlap, mode=mode)
        assert isinstance(scores, torch.Tensor)
        return scores[0]

    sample = demo.sample_of(plan_tiles(shape, roi, tiling))
    whole = by_monai(scan)[(slice(None), *sample.settled)]
    ran.clear()
    part = by_monai(scan[(..., *sample.windows)])
    inner = demo.within(sample)
    assert sum(ran) == sample.tiles <= 4**3
    assert whole.numel()
    torch.testing.assert_close(part[(slice(None), *inner)], whole, rtol=1e-4, atol=1e-3)


def test_dice_is_monais_and_every_changed_voxel_counts() -> None:
    rng = np.random.default_rng(1)
    expected = rng.integers(0, 4, (6, 7, 8))
    found = np.where(rng.random(expected.shape) < 0.2, rng.integers(0, 4, expected.shape), expected)
    names = ["background", "one", "two", "three", "never"]
    model = Card(**labelled(names))
    agreement = demo.compare(found, expected, model)
    one, other = (one_hot(torch.from_numpy(x)[None, None], 4) for x in (found, expected))
    dice = compute_dice(one, other, include_background=False)[0].tolist()
    assert list(agreement.dice) == ["one", "two", "three"]
    assert list(agreement.dice.values()) == pytest.approx(dice)
    assert agreement.changed == int((found != expected).sum())
    assert agreement.voxels == 6 * 7 * 8


# The last lines


class Shown:
    """A demo that has run: the files that `gain` reads, with PyTorch's labels given by the test."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.image = nib.Nifti1Image(
            np.random.default_rng(2).integers(0, 90, (200, 150, 140)).astype(np.uint8), np.eye(4)
        )
        self.labels = np.random.default_rng(4).integers(0, 3, self.image.shape).astype(np.uint8)
        nib.save(self.image, folder / demo.SCAN)
        seconds = {"read": 1.0, "infer": 16.0, "write": 5.0, "total": 25.0}
        (folder / "report.json").write_text(json.dumps({"tiles": 100, "seconds": seconds}))
        page = folder / "model_repository/brain-unet_openvino/1/certificate.md"
        page.parent.mkdir(parents=True)
        page.write_text("")
        certificate = {"sha256": "0" * 64, "accepted": True, "precision": "bf16", "dice_min": 0.9987,
                       "changed_fraction": 0.00041, "max_abs_error": 0.1}  # fmt: skip
        fields = labelled(["background", "grey", "white"], name="brain-unet", roi_size=[64, 64, 64], engine="openvino")
        fields["certificates"] = {"openvino": certificate}
        self.card = Card(**fields)
        monkeypatch.setattr(demo, "read_config", lambda _: None)
        monkeypatch.setattr(demo, "get_card", lambda *_: self.card)
        monkeypatch.setattr(demo, "run_pytorch", self.pytorch)

    def pytorch(self, _model: str, image: nib.Nifti1Image, sample: demo.Sample) -> demo.Pytorch:
        assert image.shape == self.image.shape
        return demo.Pytorch(self.labels[sample.windows], 0.5)

    def save(self, mask: Any) -> None:
        nib.save(nib.Nifti1Image(mask, np.eye(4)), self.folder / "mask.nii.gz")


@pytest.fixture
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shown:
    return Shown(tmp_path, monkeypatch)


def test_the_last_lines_say_what_was_gained_and_where_everything_is(
    shown: Shown, capsys: pytest.CaptureFixture[str]
) -> None:
    shown.save(shown.labels)
    assert demo.main(["gain", str(shown.folder)]) == 0
    said = capsys.readouterr().out
    assert "200×150×140 voxels, 100 tiles of 64×64×64" in said
    assert "PyTorch fp32   0.500 s a tile,   50.0 s a scan; 48 tiles run" in said
    assert "openvino bf16  0.200 s a tile,   20.0 s a scan" in said, (
        "writing and what lies beside the mask do not count"
    )
    assert "2.5 times as fast" in said
    assert "Dice grey 1.0000, white 1.0000; 0 of" in said
    assert "on the whole scan: Dice ≥ 0.9987, 0.0410% of voxels changed" in said
    for name in ("mask.nii.gz", "preview.png", "report.json", "model_repository/brain-unet_openvino/1/certificate.md"):
        assert str(shown.folder / name) in said
    assert said.splitlines()[-2].startswith("next: make serve")
    assert said.splitlines()[-1].split() == [
        ".venv/bin/voxtile", "segment", str(shown.folder / demo.SCAN), "--model", "brain-unet",
        "--output", "mask.nii.gz",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "bf16", "told"), [(50.0, False, True), (50.0, True, False), (15.0, False, False), (33.0, False, False)]
)
def test_a_demo_that_gains_little_says_why(
    shown: Shown,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    bf16: bool,
    told: bool,
) -> None:
    shown.save(shown.labels)
    report = json.loads((shown.folder / "report.json").read_text())
    report["seconds"]["total"] = seconds + report["seconds"]["write"]  # PyTorch's are 50
    (shown.folder / "report.json").write_text(json.dumps(report))
    monkeypatch.setattr(demo, "has_bf16", lambda: bf16)
    assert demo.main(["gain", str(shown.folder)]) == 0
    said = capsys.readouterr().out
    assert ("why no more: this CPU has no bf16" in said) is told
    assert "these are means with stitching, the build's figures are of the fastest tile" in said


def test_a_mask_that_is_not_pytorchs_ends_the_demo_with_1(shown: Shown, capsys: pytest.CaptureFixture[str]) -> None:
    sample = demo.sample_of(plan_tiles(shown.image.shape, (64, 64, 64), shown.card.tiling))
    mask = shown.labels.copy()
    voxels = mask[sample.settled].reshape(-1).copy()
    count = math.ceil(voxels.size * 0.0012)  # the spec's limit is 0.001
    voxels[:count] = (voxels[:count] + 1) % 3
    mask[sample.settled] = voxels.reshape(mask[sample.settled].shape)
    shown.save(mask)
    assert demo.main(["gain", str(shown.folder)]) == 1
    captured = capsys.readouterr()
    assert f"; {count:,} of {voxels.size:,} voxels changed" in captured.out
    assert captured.err == "demo: the mask is not the one that PyTorch gives; look at the certificate\n"


def test_what_lies_outside_of_the_sample_is_not_compared(shown: Shown) -> None:
    sample = demo.sample_of(plan_tiles(shown.image.shape, (64, 64, 64), shown.card.tiling))
    mask = 2 - shown.labels
    mask[sample.settled] = shown.labels[sample.settled]
    shown.save(mask)
    assert demo.main(["gain", str(shown.folder)]) == 0


@pytest.mark.parametrize(
    ("installed", "words"),
    [(None, "2 min in all"), (-30, "2 min in all"), (90, "2 min in all: 1 min 30 s to install, 30 s for the demo")],
)
def test_the_time_is_told_with_the_share_of_the_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: float | None, words: str
) -> None:
    now, stamp = time.time(), tmp_path / "stamp"
    if installed is not None:
        stamp.touch()
        os.utime(stamp, (0, now - 120 + installed))
    monkeypatch.setattr(demo, "SET_UP", stamp)
    [line] = demo._elapsed(now - 120)
    assert line.strip() == words
    assert demo._elapsed(None) == []


def test_the_command_is_used_as_the_makefile_does(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "models.demo", "gain", str(tmp_path / "none")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "make demo" in done.stderr
