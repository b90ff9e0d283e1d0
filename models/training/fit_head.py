"""Fit the last layer of SwinUNETR anew: `python -m models.training.fit_head WEIGHTS -o WEIGHTS`.

All of its features are instance-normalised. In a nearly empty window they are therefore close to 0, and the bias of
the last layer decides the label. Gradient steps move a bias by no more than the learning rate, which is far too slow.
With the features fixed, the last layer (a 1×1×1 convolution) is a multinomial logistic regression, which is convex and
is solved here at once.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.training.brain_data import load_brain
from models.training.mni152 import fetch_mni152
from models.training.networks import load_network, save_weights, sha256
from models.training.train_brain_tissue import Patches, Plan

VOXELS_A_PATCH = 20_000
ITERATIONS = 200
RIDGE = 1e-5  # on the weights, so that the solution is unique


def features_and_labels(network: nn.Module, patches: Patches, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Returns the last layer's inputs (voxel, channel) and labels (voxel,) at random voxels of `count` patches."""
    generator = torch.Generator().manual_seed(seed)
    features, labels, caught = [], [], []
    hook = network.get_submodule("out").register_forward_pre_hook(lambda _, given: caught.append(given[0]))
    with torch.inference_mode():
        for _ in range(count):
            image, label = patches.batch(1)
            network(image)
            chosen = torch.randint(label.numel(), (VOXELS_A_PATCH,), generator=generator)
            features.append(caught.pop()[0].flatten(1)[:, chosen].T)
            labels.append(label.flatten()[chosen])
    hook.remove()
    return torch.cat(features).clone(), torch.cat(labels).clone()


def fit(weight: Tensor, bias: Tensor, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, float, float]:
    """Minimises the cross-entropy of `features @ weight.T + bias` (voxel, class) against `labels` (voxel,).

    Returns:
        The new weight (class, channel) and bias (class,), and the cross-entropy before and after.
    """
    w, b = weight.clone().requires_grad_(), bias.clone().requires_grad_()
    solver: Any = torch.optim.LBFGS([w, b], max_iter=ITERATIONS, history_size=20, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        value = functional.cross_entropy(features @ w.T + b, labels) + RIDGE * w.square().sum()
        torch.autograd.backward(value)
        return value

    before = float(loss().detach())
    solver.step(loss)
    return w.detach(), b.detach(), before, float(loss().detach())


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes new weights and adds a line to the log."""
    parser = argparse.ArgumentParser(description="Fit the last layer of brain-swinunetr anew.")
    parser.add_argument("weights", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--log", type=Path, required=True, help="a line is added to it")
    parser.add_argument("--patches", type=int, default=48)
    parser.add_argument("--centred", type=float, default=0.8, help="share of patches around tissue")
    parser.add_argument("--void", type=float, default=0.1, help="share of patches that are emptied")
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument("--data", type=Path, default=Path("out/mni152"), help="where the template is put")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    plan = Plan("brain-swinunetr", seed=options.seed, centred=options.centred, void=options.void)
    network = load_network(plan.name, options.weights, use_flash_attention=True)
    patches = Patches(load_brain(fetch_mni152(options.data)), plan.generator(), plan)
    features, labels = features_and_labels(network, patches, options.patches, plan.seed)
    last = network.get_submodule("out.conv.conv")
    weight, bias = last.get_parameter("weight").detach(), last.get_parameter("bias").detach()
    new_weight, new_bias, before, after = fit(weight.flatten(1), bias, features, labels)
    weight.copy_(new_weight.reshape(weight.shape))
    bias.copy_(new_bias)
    save_weights(network, options.output, torch.float16)
    entry = {
        "fit_head": {"seed": plan.seed, "patches": options.patches, "voxels": len(labels)},
        "drawn": {"centred": plan.centred, "void": plan.void},
        "started_from": sha256(options.weights),
        "cross_entropy": {"before": round(before, 5), "after": round(after, 5)},
    }
    with options.log.open("a") as stream:
        stream.write(json.dumps(entry) + "\n")
    sys.stdout.write(f"{options.output}: cross-entropy {before:.4f} → {after:.4f}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
