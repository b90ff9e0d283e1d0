"""Train a demo network on the MNI152 template: `python -m models.training.train_brain_tissue NAME`.

The learning rate follows a cosine over the share of the budget that is spent, minutes or steps. With `--steps` the
run depends on the seed alone (as far as the CPU's kernels do). With `--minutes` it also depends on the machine's speed;
the log says how many steps were taken.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from monai.losses import DiceCELoss
from safetensors.torch import load_file
from torch import Tensor, nn

from models.training.augmentation import augment, random_size, random_void
from models.training.brain_data import (
    CENTRED,
    HELD_OUT,
    MARGIN,
    Brain,
    PatchPlaces,
    intensity_histogram,
    load_brain,
    without_held_out,
)
from models.training.mni152 import fetch_mni152
from models.training.networks import ARGUMENTS, make_network, save_weights, sha256

WARM_UP = 0.03  # share of the budget over which the learning rate rises; attention diverges without it
LARGEST_GRADIENT = 1.0  # norm to which gradients are clipped
SECONDS_BETWEEN_CHECKPOINTS = 60.0
SECONDS_BETWEEN_LOG_LINES = 15.0


@dataclass(frozen=True)
class Plan:
    """How to train: the network's name, the seed, and a budget in minutes of wall time or in steps."""

    name: str
    seed: int = 20261122
    minutes: float | None = None
    steps: int | None = None
    batch: int = 1
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    centred: float = CENTRED
    void: float = 0.2
    threads: int = 2

    def generator(self) -> np.random.Generator:
        """Returns the random numbers that patches and augmentation are drawn with."""
        return np.random.default_rng(self.seed)


class Patches:
    """An endless, seeded stream of training batches from the part of the brain that is not held out."""

    def __init__(self, brain: Brain, rng: np.random.Generator, plan: Plan) -> None:
        self._places = PatchPlaces(brain, plan.centred)
        self._void = plan.void
        self._brain = without_held_out(brain)
        self._histogram = intensity_histogram(self._brain)
        self._rng = rng

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        """Returns patches (batch, 1, x, y, z) float32 and labels (batch, 1, x, y, z) int64."""
        images, labels = zip(*(self._one() for _ in range(size)), strict=True)
        return torch.stack(images)[:, None], torch.stack(labels)[:, None]

    def _one(self) -> tuple[Tensor, Tensor]:
        where = self._places.draw(self._rng, random_size(self._rng)).slices
        t1, gm, wm = self._brain.t1[where], self._brain.gm[where], self._brain.wm[where]
        if self._rng.random() < self._void:
            t1, gm, wm = random_void(self._rng, t1, gm, wm)
        return augment(self._rng, t1, gm, wm, self._histogram)


def learning_rate(peak: float, spent: float) -> float:
    """Returns the rate after a share `spent` of the budget: a linear warm-up, then a cosine down to 0."""
    if spent < WARM_UP:
        return peak * (0.02 + 0.98 * spent / WARM_UP)
    return peak * 0.5 * (1 + math.cos(math.pi * min((spent - WARM_UP) / (1 - WARM_UP), 1)))


class Training:
    """A run: network, optimiser, data, and a log in the folder where the weights go."""

    def __init__(self, plan: Plan, brain: Brain, folder: Path) -> None:
        torch.manual_seed(plan.seed)
        self.plan, self.folder = plan, folder
        self.step, self.seconds = 0, 0.0
        # Flash attention computes the same in half of the time; the weights are the same.
        faster = {"use_flash_attention": True} if plan.name == "brain-swinunetr" else {}
        self.network = make_network(plan.name, **faster)
        self._optimiser = torch.optim.AdamW(
            self.network.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay
        )
        self._loss = DiceCELoss(to_onehot_y=True, softmax=True, batch=True)
        self._losses: list[float] = []
        self._patches = Patches(brain, plan.generator(), plan)

    @property
    def spent(self) -> float:
        """The share of the budget that is spent, 0 to 1 and beyond."""
        if self.plan.steps is not None:
            return self.step / self.plan.steps
        return self.seconds / (60 * (self.plan.minutes or 1))

    def run(self) -> nn.Module:
        """Trains until the budget is spent; returns the network in evaluation mode."""
        logged = saved = started = time.monotonic()
        while self.spent < 1:
            self.take_step()
            now = time.monotonic()
            self.seconds = now - started
            if now - logged > SECONDS_BETWEEN_LOG_LINES:
                logged = now
                self._log_losses()
            if now - saved > SECONDS_BETWEEN_CHECKPOINTS:
                saved = now
                self.save()
        self._log_losses()
        self.save()
        return self.network.eval()

    def take_step(self) -> None:
        """Takes one step at the rate that the schedule gives."""
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate(self.plan.learning_rate, self.spent)
        images, labels = self._patches.batch(self.plan.batch)
        self._optimiser.zero_grad(set_to_none=True)
        loss = self._loss(self.network(images), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), LARGEST_GRADIENT)
        self._optimiser.step()
        self.step += 1
        self._losses.append(float(loss.detach()))

    def save(self) -> None:
        """Writes the weights so far into the folder, by atomic rename."""
        dtype = torch.float16 if self.plan.name == "brain-swinunetr" else torch.float32
        save_weights(self.network, self.folder / f"{self.plan.name}.safetensors", dtype)

    def log(self, **entry: Any) -> None:
        """Adds one JSON line to the log."""
        with (self.folder / f"{self.plan.name}.jsonl").open("a") as stream:
            stream.write(json.dumps(entry) + "\n")

    def _log_losses(self) -> None:
        if self._losses:
            rate = learning_rate(self.plan.learning_rate, self.spent)
            self.log(
                step=self.step,
                seconds=round(self.seconds, 1),
                learning_rate=float(f"{rate:.4g}"),
                loss=round(float(np.mean(self._losses)), 5),
            )
            self._losses.clear()

    def log_start(self, start: str | None) -> None:
        """Adds the line that says what is run, and on what; `start` is the SHA-256 of its first weights."""
        self.log(
            plan=asdict(self.plan),
            network=dict(ARGUMENTS[self.plan.name]),
            held_out={"start": HELD_OUT.start, "stop": HELD_OUT.stop, "margin": MARGIN},
            versions={"torch": torch.__version__, "monai": monai.__version__, "numpy": np.__version__},
            started_from=start,
        )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns what the command line says."""
    parser = argparse.ArgumentParser(description="Train a demo network on the MNI152 template.")
    parser.add_argument("name", choices=sorted(ARGUMENTS))
    parser.add_argument("--data", type=Path, default=Path("out/mni152"), help="where the template is put")
    parser.add_argument("--out", type=Path, default=Path("out/training"), help="log and weights")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--minutes", type=float, help="budget in minutes of wall time")
    budget.add_argument("--steps", type=int, help="budget in steps")
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument("--batch", type=int, default=Plan.batch, help="patches a step")
    parser.add_argument("--learning-rate", type=float, default=Plan.learning_rate)
    parser.add_argument("--centred", type=float, default=CENTRED, help="share of patches around tissue")
    parser.add_argument("--void", type=float, default=Plan.void, help="share of patches that are emptied")
    parser.add_argument("--threads", type=int, default=Plan.threads)
    parser.add_argument("--start", type=Path, metavar="WEIGHTS", help="weights to start from")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains, and leaves NAME.safetensors and NAME.jsonl under --out/NAME."""
    options = parse(arguments)
    asked = vars(options)
    plan = Plan(**{entry.name: asked[entry.name] for entry in fields(Plan) if entry.name in asked})
    torch.set_num_threads(plan.threads)
    # Denormals after ReLU-like layers slow CPU kernels down manyfold and mean nothing.
    torch.set_flush_denormal(True)
    folder = options.out / plan.name
    folder.mkdir(parents=True, exist_ok=True)
    training = Training(plan, load_brain(fetch_mni152(options.data)), folder)
    if options.start is not None:
        training.network.load_state_dict(load_file(options.start))
    training.log_start(None if options.start is None else sha256(options.start))
    training.run()
    sys.stdout.write(f"{folder / plan.name}.safetensors\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
