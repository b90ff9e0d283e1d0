"""Measure a demo network: `python -m models.training.evaluate_brain_tissue NAME`.

Gives Dice of each tissue through MONAI's own sliding windows: on the whole template, split into what training saw and
what it did not, and on the held-out block of perturbed scans. Two thresholds are measured beside the network.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import monai
import numpy as np
import numpy.typing as npt
import torch
from monai.inferers import sliding_window_inference
from torch import nn

from models.training.brain_data import (
    HELD_OUT,
    LABELS,
    MARGIN,
    ROI,
    Box,
    Brain,
    Volume,
    load_brain,
)
from models.training.mni152 import fetch_mni152
from models.training.networks import ARGUMENTS, load_network, sha256
from models.training.perturbations import PERTURBATIONS, Floats, LabelledScan, as_it_is, zscore

OVERLAP = 0.5
CONTEXT = ROI[0] // 2  # voxels of surroundings that a perturbed held-out block is segmented with
Mask = npt.NDArray[np.bool_]


def dice(found: Volume, truth: Volume, where: Mask) -> dict[str, float]:
    """Returns Dice of each tissue over the voxels `where`, by the tissue's name, four decimals."""
    found, truth = found[where], truth[where]
    scores = {}
    for label, name in enumerate(LABELS[1:], start=1):
        a, b = found == label, truth == label
        scores[name] = round(2 * int((a & b).sum()) / max(int(a.sum()) + int(b.sum()), 1), 4)
    return scores


def segment(network: nn.Module, normal: Floats) -> tuple[Volume, float]:
    """Returns labels (x, y, z) of a normalised scan (x, y, z), and the mean probability of the winning label."""
    scan = torch.from_numpy(np.ascontiguousarray(normal))[None, None]
    with torch.inference_mode():
        logits = sliding_window_inference(scan, ROI, 1, network, overlap=OVERLAP, mode="gaussian")
        best = torch.softmax(logits[0], dim=0).max(dim=0)
    return best.indices.numpy().astype(np.uint8), float(best.values.mean())


def whole_scan(network: nn.Module, brain: Brain) -> dict[str, Any]:
    """Returns Dice on the whole template: in the held-out block, in what training could see, and everywhere.

    Also how many voxels are called tissue where the scan is 0, which is air.
    """
    scan = as_it_is(brain)
    found, confidence = segment(network, zscore(scan.t1))
    seen = np.ones(brain.shape, dtype=np.bool_)
    seen[HELD_OUT.grown(MARGIN, brain.shape).slices] = False
    places = {"held out": scan.held_out, "seen": seen, "everywhere": np.ones_like(seen)}
    scores: dict[str, Any] = {place: dice(found, scan.labels, where) for place, where in places.items()}
    in_air = int((found[brain.t1 == 0] > 0).sum())
    return {"dice": scores, "mean probability of the winning label": round(confidence, 4), "tissue in air": in_air}


def perturbed(network: nn.Module, brain: Brain) -> dict[str, dict[str, float]]:
    """Returns Dice in the held-out block of each perturbed scan, by the perturbation's name."""
    return {name: held_out_dice(network, change(as_it_is(brain))) for name, change in PERTURBATIONS.items()}


def held_out_dice(network: nn.Module, scan: LabelledScan) -> dict[str, float]:
    """Returns Dice of each tissue in the scan's held-out voxels, segmented with CONTEXT voxels of head around them."""
    # Mean and deviation are those of the whole head; only the network runs on a part of it.
    near = np.zeros(scan.t1.shape, dtype=np.bool_)
    near[_box_around(scan.held_out & (scan.t1 > 0)).grown(CONTEXT, as_shape(scan.t1)).slices] = True
    window = _box_around(near & (scan.t1 > 0)).slices
    found, _ = segment(network, zscore(scan.t1)[window])
    return dice(found, scan.labels[window], scan.held_out[window])


def as_shape(volume: npt.NDArray[np.generic]) -> tuple[int, int, int]:
    """Returns the shape (x, y, z) of a volume."""
    x, y, z = volume.shape
    return x, y, z


def _box_around(mask: Mask) -> Box:
    places = np.argwhere(mask)
    (x, y, z), (u, v, w) = places.min(axis=0).tolist(), (places.max(axis=0) + 1).tolist()
    return Box((x, y, z), (u, v, w))


def fit_thresholds(scan: LabelledScan) -> tuple[float, float]:
    """Returns the two z-scores that split the *seen* part best: rest | grey, grey | white, on a grid of 0.05."""
    normal, seen = zscore(scan.t1)[~scan.held_out], scan.labels[~scan.held_out]
    edges = np.arange(-4, 4, 0.05)
    at_least = np.array([[(seen[normal >= e] == label).sum() for label in range(3)] for e in edges])
    total = at_least[0]
    white = 2 * at_least[:, 2] / (at_least.sum(axis=1) + total[2])
    top = int(white.argmax())
    between = at_least - at_least[top]
    grey = 2 * between[:top, 1] / (between[:top].sum(axis=1) + total[1])
    return float(edges[int(grey.argmax())]), float(edges[top])


def thresholds_alone(brain: Brain) -> dict[str, Any]:
    """Returns Dice of two thresholds on the z-score, fitted on what training saw, in the same held-out blocks."""
    grey, white = fit_thresholds(as_it_is(brain))
    scores = {}
    for name, change in PERTURBATIONS.items():
        scan = change(as_it_is(brain))
        found = np.digitize(zscore(scan.t1), [grey, white]).astype(np.uint8)
        scores[name] = dice(found, scan.labels, scan.held_out)
    return {"z-scores": [round(grey, 2), round(white, 2)], "dice": scores}


def evaluate(name: str, weights: Path, brain: Brain) -> dict[str, Any]:
    """Returns all the figures of the model card, ready for JSON."""
    faster = {"use_flash_attention": True} if name == "brain-swinunetr" else {}
    network = load_network(name, weights, **faster)
    tissue = brain.labels > 0
    return {
        "model": name,
        "weights": {"file": weights.name, "sha256": sha256(weights), "bytes": weights.stat().st_size},
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "network": dict(ARGUMENTS[name]),
        "tiling": {"roi_size": ROI, "overlap": OVERLAP, "mode": "gaussian"},
        "held_out": {
            "start": HELD_OUT.start,
            "stop": HELD_OUT.stop,
            "margin": MARGIN,
            "share_of_tissue": round(float(tissue[HELD_OUT.slices].sum() / tissue.sum()), 4),
        },
        "whole_scan": whole_scan(network, brain),
        "perturbed": perturbed(network, brain),
        "thresholds": thresholds_alone(brain),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "monai": monai.__version__,
        },
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluates models/NAME.safetensors and writes the figures as JSON."""
    parser = argparse.ArgumentParser(description="Measure a demo network on the MNI152 template.")
    parser.add_argument("name", choices=sorted(ARGUMENTS))
    parser.add_argument("--data", type=Path, default=Path("out/mni152"), help="where the template is put")
    parser.add_argument("--weights", type=Path, help="default: models/NAME.safetensors")
    parser.add_argument("--json", type=Path, help="default: standard output")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    weights = options.weights or Path("models") / f"{options.name}.safetensors"
    figures = evaluate(options.name, weights, load_brain(fetch_mni152(options.data)))
    text = json.dumps(figures, indent=2, ensure_ascii=False) + "\n"
    if options.json is None:
        sys.stdout.write(text)
    else:
        options.json.write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
