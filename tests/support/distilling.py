"""A teacher that has learnt something simple within seconds and scans without labels."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.networks.nets import UNet
from numpy.typing import NDArray
from safetensors.torch import save

ROI = (16, 16, 16)
SHAPE = (26, 22, 19)
CHANNELS = (4, 8)
STEPS = 50

TEACHER = """
name = "{name}"
title = "bright and brightest, where they lie together"
[network]
name = "UNet"
args = {{ spatial_dims = 3, in_channels = 1, out_channels = 3, channels = {channels}, strides = [2] }}
[weights]
file = "{name}.safetensors"
sha256 = "{sha256}"
[input]
channels = ["T1"]
dtype = "fp32"
orientation = "RAS"
intensity = {{ rule = "zscore" }}
[output]
labels = ["background", "bright", "brightest"]
[inferer]
roi_size = [16, 16, 16]
overlap = 0.25
[serving]
engines = ["onnxruntime"]
max_batch_size = 2
"""


def scan_values(seed: int) -> NDArray[np.float32]:
    """[*SHAPE] float32: smooth and asymmetric, another one for each seed."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.linspace(-1, 1, size) for size in SHAPE), indexing="ij")
    values = np.zeros(SHAPE)
    for _ in range(4):
        middle, width = rng.uniform(-0.7, 0.7, 3), rng.uniform(0.2, 0.5, 3)
        shape = sum(((axis - m) / w) ** 2 for axis, m, w in zip(axes, middle, width, strict=True))
        values += rng.uniform(0.5, 1.0) * np.exp(-shape)
    return (400 * values + 20 * rng.standard_normal(SHAPE)).astype(np.float32)


def write_scans(folder: Path, count: int = 3, first_seed: int = 100, factor: float = 1.0) -> Path:
    """`count` scans in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        values = factor * scan_values(first_seed + number)
        nib.save(nib.Nifti1Image(values, np.diag([1.0, 1.0, 2.0, 1.0])), folder / f"scan_{number}.nii.gz")
    return folder


@functools.cache
def teacher_weights(channels: tuple[int, ...] = CHANNELS, steps: int = STEPS) -> bytes:
    """The weights of a network that was taught thresholds on scans of its own, as a safetensors file."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = UNet(3, 1, 3, channels=channels, strides=(2,))
        optimiser = torch.optim.AdamW(network.parameters(), 2e-2)
        scans = [scan_values(seed) for seed in range(6)]
        scans = [(scan - scan.mean()) / scan.std() for scan in scans]
        rng = np.random.default_rng(4)
        for _ in range(steps):
            rois = np.stack([_random_roi(rng, scans) for _ in range(2)])[:, None]
            labels = (rois[:, 0] > 0.5).astype(np.int64) + (rois[:, 0] > 1.8)
            loss = torch.nn.functional.cross_entropy(network(torch.from_numpy(rois)), torch.from_numpy(labels))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return save(network.state_dict())


def _random_roi(rng: np.random.Generator, scans: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    scan = scans[rng.integers(len(scans))]
    start = [int(rng.integers(size - roi + 1)) for size, roi in zip(SHAPE, ROI, strict=True)]
    return scan[tuple(slice(low, low + roi) for low, roi in zip(start, ROI, strict=True))]


def write_teacher(folder: Path, name: str = "teacher", steps: int = STEPS) -> Path:
    """The teacher's spec, with its weights beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = teacher_weights(CHANNELS, steps)
    (folder / f"{name}.safetensors").write_bytes(weights)
    digest = hashlib.sha256(weights).hexdigest()
    path = folder / f"{name}.toml"
    path.write_text(TEACHER.format(name=name, channels=list(CHANNELS), sha256=digest))
    return path
