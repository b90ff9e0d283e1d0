"""MONAI's sliding window over PyTorch: what the others are measured against."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.inferers import sliding_window_inference
from numpy.typing import NDArray

from .masks import single_path
from .networks import Network, small_unet, swinunetr, trained_swinunetr, trained_unet
from .ways import Clock, Job, peak_rss_bytes

HALF = {"cpu": torch.bfloat16, "cuda": torch.float16}


def load_network(job: Job) -> torch.nn.Module:
    """The network that a job names, by `network` and `data`; of a trained nnU-Net folder by `folder`."""
    if "folder" in job:
        from voxtile_build.importers.nnunet.models import models_of

        return models_of(Path(job["folder"]), "bench")[0].folds[0].load()
    return find_network(job["network"], Path(job["data"]), int(job.get("feature_size", 24))).load(
        bool(job.get("flash"))
    )


def find_network(key: str, data: Path, feature_size: int = 24) -> Network:
    """The network of that key."""
    makers: dict[str, Callable[[], Network]] = {
        "unet": trained_unet,
        "swinunetr-trained": trained_swinunetr,
        "swinunetr": lambda: swinunetr(data, feature_size),
        "tiny": lambda: small_unet(data),
    }
    return makers[key]()


def autocast(job: Job) -> AbstractContextManager[Any]:
    device = job["device"]
    return torch.autocast(device, HALF[device]) if job.get("half") else nullcontext()


class WindowedScan:
    """A scan through `sliding_window_inference` with any predictor; what a short script would do, and no more.

    rule: "nonzero" or "all": over which voxels the z-score's figures are taken. transposed: axes as nnU-Net has them.
    cropped: to the box of what is not 0 first, as nnU-Net does. single: also leave, beside the mask and outside of what
    is measured, where this label is more likely than not.
    """

    def __init__(self, job: Job, predict: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.job = job
        self.predict = Clock(predict)
        self.peak = 0
        # Kernels are chosen and memory is taken at the first call, which is nobody's everyday.
        predict(torch.zeros(1, 1, *job["roi"]))

    def __call__(self) -> dict[str, Any]:
        self.predict.reset()
        begun = time.perf_counter()
        image = nib.load(self.job["scan"])
        values = self._turned(image.get_fdata(dtype=np.float32))
        box = box_of(values) if self.job.get("cropped") else (...,)
        labels = np.zeros(values.shape, np.uint8)
        scores, labels[box] = self._infer(normalised(values[box], self.job["rule"]))
        nib.save(nib.Nifti1Image(self._turned(labels), image.affine), self.job["mask"])
        seconds = time.perf_counter() - begun
        told = {"seconds": seconds, "engine_seconds": self.predict.seconds, "tiles": self.predict.calls}
        if "single" not in self.job:
            return told
        if not self.peak:
            self.peak = peak_rss_bytes()
            self._save_single(scores, image.affine)
        return {**told, "peak_rss_bytes": self.peak}

    def _save_single(self, scores: torch.Tensor, affine: NDArray[Any]) -> None:
        label = self.job["single"]
        over = (scores.softmax(1)[0, label] > 0.5).numpy().astype(np.uint8) * label
        nib.save(nib.Nifti1Image(self._turned(over), affine), single_path(Path(self.job["mask"])))

    def _infer(self, values: NDArray[np.float32]) -> tuple[torch.Tensor, NDArray[np.uint8]]:
        job = self.job
        x = torch.from_numpy(np.ascontiguousarray(values))[None, None]
        with torch.inference_mode():
            scores = sliding_window_inference(
                x, job["roi"], 1, self.predict, overlap=job["overlap"], mode="gaussian", sw_device=job["device"],
                device="cpu",
            )  # fmt: skip
            labels: NDArray[np.uint8] = scores.argmax(1)[0].to(torch.uint8).numpy()
        return scores, labels

    def _turned(self, volume: NDArray[Any]) -> NDArray[Any]:
        return volume.transpose(2, 1, 0) if self.job.get("transposed") else volume


class TorchScan(WindowedScan):
    """The network in PyTorch: fp32, half precision by autocast, or compiled."""

    def __init__(self, job: Job) -> None:
        plain = load_network(job).to(job["device"])
        network: Callable[[torch.Tensor], torch.Tensor] = torch.compile(plain) if job.get("compile") else plain

        def predict(window: torch.Tensor) -> torch.Tensor:
            with torch.inference_mode(), autocast(job):
                scores: torch.Tensor = network(window.to(job["device"])).float()
            if scores.is_cuda:
                torch.cuda.synchronize()
            return scores

        super().__init__(job, predict)


class TorchTile:
    """Tiles [batch, channel, *roi] through PyTorch, normalised; seconds a run of the batch."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.network = load_network(job).to(job["device"])
        self.tiles = torch.from_numpy(np.load(job["tiles"])).to(job["device"])
        self()

    def __call__(self) -> dict[str, Any]:
        begun = time.perf_counter()
        with torch.inference_mode(), autocast(self.job):
            scores = self.network(self.tiles).float()
        if scores.is_cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - begun
        np.save(self.job["mask"], scores.argmax(1).to(torch.uint8).cpu().numpy())
        return {"seconds": seconds / len(self.tiles)}


class FreeScan:
    """MONAI's sliding window over a network that costs nothing but has so many `scores`."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def __call__(self) -> dict[str, Any]:
        job, begun = self.job, time.perf_counter()
        x = torch.from_numpy(nib.load(job["scan"]).get_fdata(dtype=np.float32))[None, None]
        with torch.inference_mode():
            scores = sliding_window_inference(
                x, job["roi"], 1, lambda window: window.repeat(1, job["scores"], 1, 1, 1), overlap=job["overlap"],
                mode="gaussian",
            )  # fmt: skip
            scores.argmax(1).to(torch.uint8)
        return {"seconds": time.perf_counter() - begun}


def box_of(values: NDArray[Any]) -> tuple[slice, ...]:
    """The smallest box that holds every voxel that is not 0."""
    where = [np.flatnonzero(values.any(tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    return tuple(slice(int(found[0]), int(found[-1]) + 1) for found in where)


def normalised(values: NDArray[np.float32], rule: str) -> NDArray[np.float32]:
    """(x - mean) / std, figures over all voxels or those that are not 0."""
    chosen = values if rule == "all" else values[values != 0]
    return (values - np.float32(chosen.mean(dtype=np.float64))) / np.float32(chosen.std(dtype=np.float64))
