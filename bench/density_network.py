"""Weights of the made-up CT's network: set and fitted, so that it is as sure of its labels as a trained one.

Twenty-five labels that differ by density take hours to learn on a CPU (docs/performance.md tells of the attempts). So
the two stages at full resolution pass each voxel's density on and nothing of its neighbours, and the last layer is
fitted to the labels by multinomial regression. All other weights are random, all layers run as they would; only what
comes from below is not heard. Dice says how far two ways of running it agree, and nothing else. `bench.train` goes on
from here, which borders between organs need.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from .scans import CT_LABELS, CT_SPACING, Shape, ct_labels, ct_values

MODEL_SPACING = 3.0
"""Millimetres a voxel of the network's grid, as TotalSegmentator's fast model has them."""
SCAN: Shape = (512, 512, 200)
VOXELS = 3000
"""Of each label in each tile: small organs count as much as the body."""
DECAY = 1e-6
STEPS = 300


def grid_of(roi: Shape) -> Shape:
    """Voxels of the CT on the network's grid, no fewer than a tile has."""
    sizes = (max(round(n * mm / MODEL_SPACING), r) for n, mm, r in zip(SCAN, CT_SPACING, roi, strict=True))
    x, y, z = sizes
    return x, y, z


def fingerprint(roi: Shape) -> dict[str, float]:
    """Intensity figures for a plan: nnU-Net's CT rule then clips nothing, so that air stays air."""
    values = ct_values(grid_of(roi)).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    figures = {"mean": float(values.mean()), "std": float(values.std()), "median": float(np.median(values))}
    return {**figures, "min": low, "max": high, "percentile_00_5": low, "percentile_99_5": high}


def fit_densities(network: Any, roi: Shape) -> None:
    """Sets the weights of nnU-Net's PlainConvUNet for the labels of the made-up CT."""
    _pass_densities(network)
    head = network.decoder.seg_layers[-1]
    features, labels = _features(network, head, _tiles(roi))
    weights, bias = _regression(features, labels)
    with torch.no_grad():
        head.weight.copy_(weights.reshape(head.weight.shape))
        head.bias.copy_(bias)


def _pass_densities(network: Any) -> None:
    """Kernels of the first and the last stage see the middle voxel alone, and nothing comes from below."""
    first, last = network.encoder.stages[0], network.decoder.stages[-1]
    with torch.no_grad():
        for layer in (*_convolutions(first), *_convolutions(last)):
            middle = torch.zeros(layer.kernel_size)
            middle.view(-1)[middle.numel() // 2] = 1
            layer.weight.mul_(middle)
        entry = next(_convolutions(last))
        entry.weight[:, : entry.in_channels // 2] = 0  # the other half is the skip


def _convolutions(part: nn.Module) -> Iterator[nn.Conv3d]:
    return (layer for layer in part.modules() if isinstance(layer, nn.Conv3d))


def _tiles(roi: Shape) -> Iterator[tuple[NDArray[np.float32], NDArray[np.uint8]]]:
    """Every other corner of the CT: normalised values and labels [z, y, x]."""
    grid, figures = grid_of(roi), fingerprint(roi)
    values = ((ct_values(grid) - figures["mean"]) / figures["std"]).astype(np.float32)
    labels = ct_labels(grid)
    for corner in itertools.product((0, 1), repeat=3):
        if sum(corner) % 2 == 0:
            starts = [at * (n - r) for at, n, r in zip(corner, grid, roi, strict=True)]
            where = tuple(slice(start, start + r) for start, r in zip(starts, roi, strict=True))
            yield values[where].transpose(2, 1, 0).copy(), labels[where].transpose(2, 1, 0).copy()


def _features(
    network: nn.Module, head: nn.Module, tiles: Iterable[tuple[NDArray[np.float32], NDArray[np.uint8]]]
) -> tuple[Tensor, Tensor]:
    """What the last layer sees of some voxels of each label [voxel, channel], and the labels [voxel]."""
    seen: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    rng, features, labels = np.random.default_rng(23), [], []
    for values, truth in tiles:
        # Half precision, as nnU-Net trains: the layer then leans on nothing that rounding takes away.
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            network(torch.from_numpy(values)[None, None])
        channels = seen.pop()[0].float().flatten(1)
        for label in range(CT_LABELS):
            there = np.flatnonzero(truth == label)
            chosen = torch.from_numpy(rng.permutation(there)[:VOXELS])
            features.append(channels[:, chosen].T.clone())
            labels.append(torch.full((len(chosen),), label))
    hook.remove()
    return torch.cat(features), torch.cat(labels)


def _regression(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Weights [label, channel] and bias [label] of multinomial regression, by L-BFGS."""
    mean, spread = features.mean(0), features.std(0) + 1e-6
    scaled = (features - mean) / spread
    weights = torch.zeros(CT_LABELS, features.shape[1], requires_grad=True)
    bias = torch.zeros(CT_LABELS, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights, bias], max_iter=STEPS, history_size=30, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = functional.cross_entropy(scaled @ weights.T + bias, labels) + DECAY * weights.square().sum()
        torch.autograd.backward(loss)
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    found = weights.detach() / spread
    return found, bias.detach() - found @ mean
