"""Trains the stand-ins of a user's nnU-Net networks: `python -m bench.train`.

They learn the very scans that are measured, so they say nothing about segmentation; but unlike random weights they are
as sure of their labels as trained networks are, which decides how many voxels a lower precision flips. A benchmark
takes the weights from then on, and its tables say so.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from .lessons import LESSONS, Patches
from .networks import DEFAULT_WIDTHS, stand_in
from .settings import say

LARGEST_GRADIENT = 12.0
"""nnU-Net's own bound of the gradient's norm."""


def train(network: nn.Module, patches: Patches, steps: int, rate: float = 1e-3, warm_up: int = 0) -> nn.Module:
    """`network` after a step for each of so many patches, in bf16; the rate rises, then falls along a cosine."""
    network.train()
    optimiser = torch.optim.AdamW(list(network.parameters()), rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _share(step, steps, warm_up))
    begun, losses = time.monotonic(), []
    for step, (values, labels) in zip(range(steps), patches, strict=False):
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


def _share(step: int, steps: int, warm_up: int) -> float:
    """Of the largest rate, at `step`."""
    risen = min(1.0, (step + 1) / warm_up) if warm_up else 1.0
    return risen * 0.5 * (1 + math.cos(math.pi * step / steps))


def _loss(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy, and one minus the mean soft Dice of the classes that are in the patch; nnU-Net's sum."""
    shares = scores.softmax(1)
    truth = functional.one_hot(labels, scores.shape[1]).movedim(-1, 1).float()
    axes = (0, 2, 3, 4)
    present = truth.sum(axes) > 0
    dice = (2 * (shares * truth).sum(axes) + 1) / ((shares + truth).sum(axes) + 1)
    return functional.cross_entropy(scores, labels) + 1 - dice[present].mean()


def keep(network: nn.Module, weights: Path, told: Mapping[str, int]) -> None:
    """Writes the weights, and then what is told of them, by which the benchmark finds both."""
    partial = weights.with_suffix(".partial")
    # nnU-Net's decoder holds the encoder once more; a file of safetensors holds no tensor twice under two names.
    save_file({key: value.clone() for key, value in network.state_dict().items()}, partial)
    partial.replace(weights)
    weights.with_suffix(".json").write_text(json.dumps(told) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Leaves the weights where the benchmark looks for them, with what made them beside them."""
    parser = argparse.ArgumentParser(prog="python -m bench.train", description="Train the benchmark's stand-ins.")
    parser.add_argument("--only", choices=tuple(LESSONS), help="one of them; left out, all")
    parser.add_argument("--steps", type=int, help="patches of each; left out, as many as it needs")
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="the benchmark's own folder")
    options = parser.parse_args(arguments)
    data = options.out / "data"
    data.mkdir(parents=True, exist_ok=True)
    torch.set_flush_denormal(True)
    for kind in [options.only] if options.only else LESSONS:
        lesson = LESSONS[kind]
        steps, begun = options.steps or lesson.steps, time.monotonic()
        say(f"{kind}: {steps} steps")
        network = train(lesson.network(), lesson.patches(data), steps, lesson.rate, lesson.warm_up)
        weights = stand_in(data, kind, DEFAULT_WIDTHS)
        keep(network, weights, {"steps": steps, "seconds": round(time.monotonic() - begun)})
        sys.stdout.write(f"{weights}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
