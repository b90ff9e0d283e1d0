"""The whole way from a teacher to its student for other kinds than a 3D network, scans of many and steps."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.networks.nets import UNet
from safetensors.torch import load, save

from tests.support.distilling import TEACHER, scan_values, write_scans, write_teacher
from voxtile_build.cli import commands as cli
from voxtile_build.repository.card import get_card
from voxtile_build.repository.config import read_config
from voxtile_build.spec.spec import load_spec

ROI = {"tiled slices": "[16, 12]\nslice_axis = 1", "whole slices": "[16, 16]\nslice_axis = 2\nmultiple = 4"}
OVERLAP = {"tiled slices": "0.25", "whole slices": "0"}


@functools.cache
def slice_weights() -> bytes:
    """The weights of a 2D network that was taught thresholds on slices along both axes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = UNet(2, 1, 3, channels=(4, 8), strides=(2,))
        optimiser = torch.optim.AdamW(network.parameters(), 2e-2)
        rng = np.random.default_rng(4)
        for step in range(60):
            scan = scan_values(step % 6)
            scan = ((scan - scan.mean()) / scan.std())[:, :18, :18]
            places = rng.integers(18, size=4)
            slices = np.stack([scan[:24, at, :16] if step % 2 else scan[:24, :16, at] for at in places])[:, None]
            labels = (slices[:, 0] > 0.5).astype(np.int64) + (slices[:, 0] > 1.8)
            loss = torch.nn.functional.cross_entropy(network(torch.from_numpy(slices)), torch.from_numpy(labels))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return save(network.state_dict())


def write_slice_teacher(folder: Path, kind: str) -> Path:
    """The spec of a 2D teacher, with its weights beside it."""
    weights = slice_weights()
    (folder / "teacher.safetensors").write_bytes(weights)
    text = TEACHER.format(name="teacher", channels=[4, 8], sha256=hashlib.sha256(weights).hexdigest())
    text = text.replace("spatial_dims = 3", "spatial_dims = 2").replace("[16, 16, 16]", ROI[kind])
    path = folder / "teacher.toml"
    path.write_text(text.replace("overlap = 0.25", f"overlap = {OVERLAP[kind]}"))
    return path


def distil(teacher: Path, folder: Path, *more: str) -> dict[str, Any]:
    """Runs the command, publishes what comes out, and gives its report."""
    arguments = ("distil", teacher, "--scans", folder / "scans", "--output", folder / "out", "--name", "small")
    given = ("--threads", "1", "--quiet", "--any-modality", "--repository", folder / "models", *more)
    assert cli.main([*map(str, (*arguments, *given))]) == 0
    report: dict[str, Any] = json.loads((folder / "out" / "small.distillation.json").read_text())
    return report


@pytest.mark.parametrize("kind", ROI)
def test_a_teacher_of_slices_has_a_student_of_slices(tmp_path: Path, kind: str) -> None:
    teacher = write_slice_teacher(tmp_path, kind)
    write_scans(tmp_path / "scans", 3)
    report = distil(teacher, tmp_path, "--width", "0.5", "--steps", "200", "--min-dice", "0.5")
    student = load_spec(tmp_path / "out" / "small.toml")
    assert student.tiling == load_spec(teacher).tiling
    assert student.tiling.slice_axis is not None
    weights = load((tmp_path / "out" / "small.safetensors").read_bytes())
    convolutions = [value for value in weights.values() if value.dim() > 1]
    assert {value.dim() for value in convolutions} == {4}  # of two dimensions in space
    assert report["training"]["steps"] == 200
    assert report["training"]["start"] != "random"
    card = get_card(read_config(tmp_path / "models" / "small"), tmp_path / "models" / "small")
    assert len(card.certificates) == 1


def test_hours_of_one_scan_alone(tmp_path: Path) -> None:
    teacher = write_teacher(tmp_path)
    write_scans(tmp_path / "scans", 1)
    report = distil(teacher, tmp_path, "--width", "0.5", "--hours", "0.004", "--one-scan", "--min-dice", "0")
    assert report["training"]["steps"] > 0
    (scan,) = report["scans"]["trained_on"]
    assert report["scans"]["held_out"] == [scan]  # of it, a block is held out
    assert report["agreement"]["block"]
