"""Trained nnU-Net v2 folders with the weights of `bench/weights/`, and scans as nnU-Net prepares them.

Each network has four files there: NAME.safetensors (the parameters in fp16), NAME.plans.json, NAME.dataset.json and the
model card NAME.md.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from safetensors.torch import load_file

from voxtile.chains.nnunet.plan import NnunetPlan
from voxtile.chains.nnunet.preprocessing import preprocess
from voxtile.outputs.prepared_files import write_prepared
from voxtile_build.importers.nnunet.network import network_of

from .scans import Shape, made

WEIGHTS = Path(__file__).parent / "weights"
BRAIN, CHEST = "plainconvunet-brain", "plainconvunet-chest"


def folder_of(name: str, roi: Shape, data: Path) -> Path:
    """Returns a trained folder in `data`, as nnU-Net writes it, of BRAIN or CHEST with a patch of `roi` voxels."""
    folder = data / f"{name}-{roi[0]}" / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    (folder / "fold_0").mkdir(parents=True, exist_ok=True)
    plans, dataset = (json.loads((WEIGHTS / f"{name}.{part}.json").read_text()) for part in ("plans", "dataset"))
    configuration = plans["configurations"]["3d_fullres"]
    configuration["patch_size"] = list(roi)
    for file, content in (("plans.json", plans), ("dataset.json", dataset)):
        (folder / file).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def save(path: Path) -> None:
        network = network_of(configuration, 1, len(dataset["labels"]), name)
        load_shipped(network, name)
        checkpoint = {
            "network_weights": network.state_dict(),
            "init_args": {"configuration": "3d_fullres", "fold": 0},
            "trainer_name": "nnUNetTrainer",
            "inference_allowed_mirroring_axes": None,
        }
        torch.save(checkpoint, path)

    made(folder / "fold_0" / "checkpoint_final.pth", save)
    return folder


def load_shipped(network: torch.nn.Module, name: str) -> None:
    """Copies the shipped fp16 weights into the fp32 `network`.

    Raises:
        ValueError: the file holds other parameters than the network.
    """
    parameters, shipped = dict(network.named_parameters()), load_file(WEIGHTS / f"{name}.safetensors")
    if set(parameters) != set(shipped):
        raise ValueError(f"{name}: expected the parameters of the plan's network, found {sorted(shipped)[:3]} …")
    with torch.no_grad():
        for key, value in shipped.items():
            parameters[key].copy_(value)


def prepared(fields: dict[str, Any], scan: Path) -> Path:
    """Returns `scan` as `voxtile prepare` writes it for the model of a spec with `fields` in its section nnunet."""

    def make(path: Path) -> None:
        image = nib.load(scan)
        # nnU-Net's axes are (z, y, x), as SimpleITK's.
        values = np.asanyarray(image.dataobj).astype(np.float32).transpose(2, 1, 0)[None]
        ready = preprocess(values, image.header.get_zooms()[::-1], NnunetPlan.parse(fields))
        write_prepared(ready.data, ready.properties.target_spacing, fields["preparation"], path)

    return made(scan.with_name(f"{fields['preparation'][:8]}-{scan.name}"), make)
