"""The ways to segment a scan: each is made ready from a job, and then called once a run.

A run begins with the scan's file and ends with the mask's file, for every way alike. It returns `seconds` (wall clock),
`engine_seconds` (of the network alone) and `tiles`. What a way needs is imported when the way is made ready, so that no
process holds another way's libraries. A job holds `scan`, `mask`, `roi` in voxels, `overlap` as a share of it, and
`device`; each way says what else.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from .engines import Array, Job, Way, open_engine, with_intensity
from .memory import peak_rss_bytes


class Clock:
    """Calls something, adds up the seconds that it takes, and counts the calls."""

    def __init__(self, work: Any) -> None:
        self.work, self.seconds, self.calls = work, 0.0, 0

    def __call__(self, *arguments: Any) -> Any:
        started = time.perf_counter()
        result = self.work(*arguments)
        self.seconds, self.calls = self.seconds + time.perf_counter() - started, self.calls + 1
        return result

    def read(self) -> dict[str, Any]:
        """Returns both figures under their names in a run, and starts again from zero."""
        told = {"engine_seconds": self.seconds, "tiles": self.calls}
        self.seconds, self.calls = 0.0, 0
        return told


class WindowedScan:
    """A scan through MONAI's `sliding_window_inference` and an engine: what a short script does, and no more.

    Job: see `engines.open_engine`; `batch`, windows in one call (1); `as_it_is` leaves the values as the file has them.
    With `folder` axes are turned, and the scan is cropped to what is not 0, as nnU-Net does. With `single` the first
    run also leaves the mask of this label alone, decided at a probability of one half; that is not measured.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.engine = Clock(open_engine(job))
        self.peak_bytes = 0
        # Only the first call imports libraries, chooses kernels and takes memory.
        self._infer(np.zeros((job["roi"][0] * job.get("batch", 1), *job["roi"][1:]), np.float32))
        self.engine.read()

    def __call__(self) -> dict[str, Any]:
        started = time.perf_counter()
        image = nib.load(self.job["scan"])
        values = self._turned(image.get_fdata(dtype=np.float32))
        box = box_of(values) if "folder" in self.job else (...,)
        labels = np.zeros(values.shape, np.uint8)
        if not self.job.get("as_it_is"):
            values = normalised(values[box], nonzero="folder" not in self.job)
        scores, labels[box] = self._infer(values)
        nib.save(nib.Nifti1Image(self._turned(labels), image.affine), self.job["mask"])
        measured = {"seconds": time.perf_counter() - started, **self.engine.read()}
        if "single" not in self.job:
            return measured
        if not self.peak_bytes:
            self.peak_bytes = peak_rss_bytes()
            self._save_single(scores, image.affine)
        return {**measured, "peak_rss_bytes": self.peak_bytes}

    def _infer(self, values: Array) -> tuple[Any, Array]:
        import torch
        from monai.inferers import sliding_window_inference

        def network(windows: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(self.engine(with_intensity(windows.numpy(), self.job)))

        x, batch = torch.from_numpy(np.ascontiguousarray(values))[None, None], self.job.get("batch", 1)
        with torch.inference_mode():
            scores = sliding_window_inference(
                x, self.job["roi"], batch, network, overlap=self.job["overlap"], mode="gaussian"
            )
            return scores, scores.argmax(1)[0].to(torch.uint8).numpy()

    def _save_single(self, scores: Any, affine: Array) -> None:
        label = self.job["single"]
        over = (scores.softmax(1)[0, label] > 0.5).numpy().astype(np.uint8) * label
        nib.save(nib.Nifti1Image(self._turned(over), affine), single_path(self.job["mask"]))

    def _turned(self, volume: Array) -> Array:
        return volume.transpose(2, 1, 0) if "folder" in self.job else volume


def voxtile_scan(job: Job) -> Way:
    """Our client against the entry `name` of the server at `url`; its `engine_seconds` are the server's to tell.

    Job: `options` of the segmenter; `shared_memory` (left out: the client chooses); `warm_up`, a scan that is not
    measured.
    """
    from voxtile.cli.allocator import limit_malloc_arenas
    from voxtile.io.writing import write_image
    from voxtile.options import Options
    from voxtile.segmenter import Segmenter
    from voxtile.triton.connection import ConnectionConfig

    limit_malloc_arenas()  # as the command does
    connection = ConnectionConfig(shared_memory=job.get("shared_memory"))
    segmenter = Segmenter(job["url"], job["name"], Options(**job.get("options", {}), connection=connection))
    segmenter(job["warm_up"])

    def run() -> dict[str, Any]:
        started = time.perf_counter()
        done = segmenter.segment(job["scan"])
        write_image(done.mask, job["mask"])
        seconds = time.perf_counter() - started
        told = {"tiles": done.report.tiles, "predicted_peak_bytes": done.report.predicted_peak_bytes}
        return {"seconds": seconds, **told}

    return run


def nnunet_scan(job: Job) -> Way:
    """nnU-Net's own predictor of `folder`, from file to file, in one process, without mirroring."""
    import torch

    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ.setdefault(variable, "/nonexistent")  # nnU-Net asks for them at import; prediction needs none
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    device: str = job["device"]
    predictor = nnUNetPredictor(
        use_mirroring=False, device=torch.device(device), perform_everything_on_device=device == "cuda",
        allow_tqdm=False,
    )  # fmt: skip
    predictor.initialize_from_trained_model_folder(str(job["folder"]), ("0",))
    predictor.network.load_state_dict(predictor.list_of_parameters[0])
    with torch.inference_mode():
        predictor.network(torch.zeros(1, 1, *job["roi"], device=device))
    network = predictor.network.forward = Clock(predictor.network.forward)
    mask: Path = job["mask"]
    target = mask.with_name(f"nnunet-{mask.name.removesuffix('.nii.gz')}")

    def run() -> dict[str, Any]:
        started = time.perf_counter()
        predictor.predict_from_files_sequential([[str(job["scan"])]], [str(target)])
        seconds = time.perf_counter() - started
        target.with_name(f"{target.name}.nii.gz").replace(mask)
        return {"seconds": seconds, **network.read()}

    return run


def box_of(values: Array) -> tuple[slice, ...]:
    """Returns the smallest box that holds every voxel that is not 0."""
    where = [np.flatnonzero(values.any(tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    return tuple(slice(int(found[0]), int(found[-1]) + 1) for found in where)


def normalised(values: Array, *, nonzero: bool) -> Array:
    """Returns (x - mean) / std, both taken over the voxels that are not 0 (`nonzero`) or over all."""
    chosen = values[values != 0] if nonzero else values
    return (values - np.float32(chosen.mean(dtype=np.float64))) / np.float32(chosen.std(dtype=np.float64))


def single_path(mask: Path) -> Path:
    """Returns the path of the mask of one class alone; it lies beside the whole `mask`."""
    return mask.with_name(f"single-{mask.name}")
