"""nnU-Net's own predictor, from the scan's file to the mask's, in one process, without mirroring."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch

for _variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
    os.environ.setdefault(_variable, "/nonexistent")  # it asks for them at import; prediction needs none

from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor  # noqa: E402

from .ways import Clock, Job  # noqa: E402


class NnunetScan:
    """The predictor as it is, half-precision accumulators included; `predict_from_files_sequential`."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.predictor = nnUNetPredictor(
            use_mirroring=False,
            device=torch.device(job["device"]),
            perform_everything_on_device=job["device"] == "cuda",
            allow_tqdm=False,
        )
        self.predictor.initialize_from_trained_model_folder(job["folder"], ("0",))
        self.predictor.network.load_state_dict(self.predictor.list_of_parameters[0])
        with torch.inference_mode():
            self.predictor.network(torch.zeros(1, 1, *job["roi"], device=job["device"]))
        self.network = Clock(self.predictor.network.forward)
        self.predictor.network.forward = self.network

    def __call__(self) -> dict[str, Any]:
        self.network.reset()
        mask = Path(self.job["mask"])
        target = mask.with_name(f"nnunet-{mask.name.removesuffix('.nii.gz')}")
        begun = time.perf_counter()
        self.predictor.predict_from_files_sequential([[self.job["scan"]]], [str(target)])
        seconds = time.perf_counter() - begun
        target.with_name(f"{target.name}.nii.gz").replace(mask)
        return {"seconds": seconds, "engine_seconds": self.network.seconds, "tiles": self.network.calls}
