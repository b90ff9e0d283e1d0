"""Scans as nnU-Net prepares them: what its networks are calibrated and certified on."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from voxtile.nnunet.preprocessing import NnunetPlan, preprocess
from voxtile_build.members import Model

from .scans import made


def prepared(model: Model, scan: Path) -> Path:
    """`scan` normalised and on the grid of the nnU-Net model, beside it: float32, axes as in the file."""
    plan = NnunetPlan.from_json(model.spec.nnunet or {})

    def make(path: Path) -> None:
        image = nib.load(scan)
        # SimpleITK's axes, which are nnU-Net's, are (z, y, x).
        values = np.asanyarray(image.dataobj).astype(np.float32).transpose(2, 1, 0)[None]
        ready = preprocess(values, image.header.get_zooms()[::-1], plan)
        spacing = ready.properties.target_spacing[::-1]
        nib.save(nib.Nifti1Image(ready.data[0].transpose(2, 1, 0), np.diag([*spacing, 1.0])), path)

    return made(scan.with_name(f"{model.spec.name}-{scan.name}"), make)
