"""Scans as nnU-Net prepares them: what its networks are calibrated and certified on."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from voxtile.chains.nnunet.plan import NnunetPlan
from voxtile.chains.nnunet.preprocessing import preprocess
from voxtile.outputs.prepared_files import write_prepared
from voxtile_build.repository.folds import Model

from .scans import made


def prepared(model: Model, scan: Path) -> Path:
    """`scan` as `voxtile prepare` would write it for the nnU-Net model, which need not be served for that."""
    fields = model.spec.nnunet or {}
    plan = NnunetPlan.parse(fields)

    def make(path: Path) -> None:
        image = nib.load(scan)
        # SimpleITK's axes, which are nnU-Net's, are (z, y, x).
        values = np.asanyarray(image.dataobj).astype(np.float32).transpose(2, 1, 0)[None]
        ready = preprocess(values, image.header.get_zooms()[::-1], plan)
        write_prepared(ready.data, ready.properties.target_spacing, fields["preparation"], path)

    return made(scan.with_name(f"{fields['preparation'][:8]}-{scan.name}"), make)
