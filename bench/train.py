"""Trains the stand-in of a user's nnU-Net network: `python -m bench.train`.

It learns the very brain that is measured, so it says nothing about segmentation; but unlike random weights it is as
sure of its labels as trained networks are, which decides how many voxels a lower precision flips. A benchmark takes
the weights from then on, and its tables say so.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from .networks import DEFAULT_WIDTHS, TISSUES, plain_conv_unet, seeded, stand_in
from .scans import brain_files, tissue_labels
from .settings import say

PATCH = 64
"""Voxels an edge: what the lowest of nnU-Net's six stages still normalises, 2³ of them."""
RATE = 1e-3
JITTER = 0.05
"""How far contrast, brightness and noise of a patch are varied, in standard deviations of the scan."""
LARGEST_GRADIENT = 12.0
"""nnU-Net's own bound of the gradient's norm."""


@dataclass(frozen=True)
class Example:
    """values: normalised [z, y, x]; labels: uint8 of the same shape, below `classes`."""

    values: NDArray[np.float32]
    labels: NDArray[np.uint8]
    classes: int


def brain(data: Path) -> Example:
    """The whole template at 1 mm, z-score."""
    values = np.asanyarray(nib.load(brain_files(data)["t1"]).dataobj).astype(np.float32)
    labels = tissue_labels(data, (values.shape[0], values.shape[1], values.shape[2]))
    return Example(_turned((values - values.mean()) / values.std()), _turned(labels), len(TISSUES))


def train(example: Example, steps: int, widths: tuple[int, ...] = DEFAULT_WIDTHS, patch: int = PATCH) -> nn.Module:
    """PlainConvUNet after `steps` patches of `patch` voxels an edge, in bf16; the rate falls along a cosine."""
    network = seeded(lambda: plain_conv_unet(widths, example.classes)).train()
    optimiser = torch.optim.AdamW(list(network.parameters()), RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    rng, begun, losses = np.random.default_rng(20), time.monotonic(), []
    places = [np.flatnonzero(example.labels == label) for label in range(example.classes)]
    for step in range(steps):
        values, labels = _patch(example, places, patch, rng)
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            scores = network(values)
        loss = _loss(scores.float(), labels)
        torch.autograd.backward(loss)
        # Where a patch is all but empty, the variances of the lowest stage vanish, and their gradients with them.
        if nn.utils.clip_grad_norm_(network.parameters(), LARGEST_GRADIENT).isfinite():
            optimiser.step()
        schedule.step()
        losses.append(loss.item())
        if (step + 1) % 20 == 0:
            say(f"step {step + 1}: loss {np.mean(losses[-20:]):.4f}, {time.monotonic() - begun:.0f} s")
    return network.eval()


def _loss(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy, and one minus the mean soft Dice of the classes that are in the patch; nnU-Net's sum."""
    shares = scores.softmax(1)
    truth = functional.one_hot(labels, scores.shape[1]).movedim(-1, 1).float()
    axes = (0, 2, 3, 4)
    present = truth.sum(axes) > 0
    dice = (2 * (shares * truth).sum(axes) + 1) / ((shares + truth).sum(axes) + 1)
    return functional.cross_entropy(scores, labels) + 1 - dice[present].mean()


def _patch(
    example: Example, places: Sequence[NDArray[np.int64]], patch: int, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """A patch around a random voxel of a random class, mirrored, brighter or darker, with noise."""
    chosen = places[int(rng.integers(len(places)))]
    shape = np.array(example.labels.shape)
    centre = np.unravel_index(chosen[rng.integers(chosen.size)], example.labels.shape)
    first = np.clip(np.array(centre) - rng.integers(patch // 4, 3 * patch // 4, 3), 0, shape - patch)
    where = tuple(slice(int(begin), int(begin) + patch) for begin in first)
    gain, offset, noise = JITTER * rng.uniform((-1, -1, 0), 1)
    values = (1 + gain) * example.values[where] + offset + noise * rng.standard_normal((patch,) * 3)
    axes = tuple(axis for axis in range(3) if rng.random() < 0.5)
    turned = [np.flip(array, axes)[None].copy() for array in (values.astype(np.float32), example.labels[where])]
    return torch.from_numpy(turned[0])[None], torch.from_numpy(turned[1]).long()


def _turned(values: NDArray[Any]) -> NDArray[Any]:
    """nnU-Net's axes are (z, y, x)."""
    return np.ascontiguousarray(values.transpose(2, 1, 0))


def keep(network: nn.Module, weights: Path, told: Mapping[str, int]) -> None:
    """Writes the weights, and then what is told of them, by which the benchmark finds both."""
    partial = weights.with_suffix(".partial")
    # nnU-Net's decoder holds the encoder once more; a file of safetensors holds no tensor twice under two names.
    save_file({key: value.clone() for key, value in network.state_dict().items()}, partial)
    partial.replace(weights)
    weights.with_suffix(".json").write_text(json.dumps(told) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Leaves the weights where the benchmark looks for them, with what made them beside them."""
    parser = argparse.ArgumentParser(prog="python -m bench.train", description="Train a stand-in for the benchmark.")
    parser.add_argument("--steps", type=int, default=400, help="patches of 64³; about a second each on two cores")
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="the benchmark's own folder")
    options = parser.parse_args(arguments)
    data = options.out / "data"
    data.mkdir(parents=True, exist_ok=True)
    torch.set_flush_denormal(True)
    begun = time.monotonic()
    network = train(brain(data), options.steps)
    weights = stand_in(data, "brain", DEFAULT_WIDTHS)
    keep(network, weights, {"steps": options.steps, "seconds": round(time.monotonic() - begun)})
    sys.stdout.write(f"{weights}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
