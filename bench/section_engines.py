"""engines.json: seconds a ROI of every engine and precision, at every batch, against PyTorch fp32 in the same run.

Engines run their entries' own files with the entries' own parameters, in a process each; Dice and flipped voxels are
between the labels of the same tiles.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from voxtile_build.repository.folds import Model

from .entries import LEVELS, build_levels, engine_files, engine_keys, engine_levels, model_of, nnunet_model
from .masks import changed_fraction, dice_min
from .networks import DEFAULT_WIDTHS, Shape
from .nnunet_folder import brain_folder
from .scans import brain_crop
from .section_parts import Rows
from .settings import Settings, say
from .timing import interleave, ratio, spread
from .way_torch import normalised
from .worker import Worker, WorkerError
from .workloads import common_job, how_taught, network_of, scanned

BATCHES = (1, 2)
BASELINE = ("PyTorch", "fp32", 1)

Variant = tuple[str, str, int]
"""Engine, precision, batch."""


def measure(settings: Settings) -> Rows:
    rows: Rows = []
    for key in engine_keys(settings):
        try:
            rows += _network(key, settings)
        except WorkerError as error:
            settings.leave_out("engines", key, str(error))
    return rows


def _network(key: str, settings: Settings) -> Rows:
    """All variants of one network, taking turns."""
    model, torch_job, title = _model(key, settings)
    # Large networks gain nothing from a batch on a CPU, and twice as many ways do not fit into memory side by side.
    batches = BATCHES if key == "unet" and not (settings.quick or settings.tiny) else BATCHES[:1]
    tiles = _tiles(key, _three(model.spec.tiling.roi_size), settings)
    jobs = _jobs(key, model, torch_job, tiles, batches, settings)
    say(f"engines of {title}: {len(jobs)} variants")
    with contextlib.ExitStack() as stack:
        workers: dict[Variant, Worker] = {}
        for variant, job in jobs.items():
            log = settings.work / f"engine-{key}-{'-'.join(map(str, variant))}.log"
            try:
                workers[variant] = stack.enter_context(Worker({**job, "mask": str(log.with_suffix(".npy"))}, log))
            except WorkerError as error:
                settings.leave_out(title, " ".join(map(str, variant)), str(error))
        names = {" ".join(map(str, variant)): worker for variant, worker in workers.items()}
        runs = interleave(names, settings.repetitions, settings.budget_s(90))
    return _rows(key, title, {v: runs[" ".join(map(str, v))] for v in workers}, settings)


def _model(key: str, settings: Settings) -> tuple[Model, dict[str, Any], str]:
    """The model to build, the job of its network in PyTorch, and its name for people."""
    if key != "nnunet":
        network = network_of("tiny" if settings.tiny else key, settings)
        tile = brain_crop(settings.data, network.roi)
        return model_of(network, tile, settings), common_job(network, tile, settings), network.title
    roi: Shape = (64,) * 3 if settings.quick else (96,) * 3
    folder = brain_folder(settings.data, DEFAULT_WIDTHS, roi)
    model = scanned(nnunet_model(folder, "nnunet", settings), brain_crop(settings.data, roi))
    taught = how_taught(settings.data, "brain", DEFAULT_WIDTHS)
    return (
        model,
        {"folder": str(folder), "device": settings.device},
        f"nnU-Net PlainConvUNet, {taught}, patch {roi[0]}³",
    )


def _jobs(
    key: str, model: Model, torch_job: Mapping[str, Any], tiles: Mapping[int, Path], batches: tuple[int, ...],
    settings: Settings,
) -> dict[Variant, dict[str, Any]]:  # fmt: skip
    """Every variant that can be built, as a job."""
    jobs: dict[Variant, dict[str, Any]] = {}
    swin = "swin" in key
    for batch in batches:
        job = {**torch_job, "way": "torch-tile", "tiles": str(tiles[batch])}
        jobs["PyTorch", "fp32", batch] = job
        jobs["PyTorch", "bf16 autocast", batch] = {**job, "half": True}
        if swin:
            jobs["PyTorch flash", "fp32", batch] = {**job, "flash": True}
    for level, entries in build_levels(model, key, engine_levels(key, settings), settings).items():
        for engine, entry in entries.items():
            for batch in batches:
                jobs[engine, LEVELS[level][engine], batch] = {
                    "way": "engine-tile", "files": engine_files(entry, settings), "tiles": str(tiles[batch]),
                    "device": settings.device, "intensity": model.spec.whole_scan_intensity,
                }  # fmt: skip
    return jobs


def _three(roi: tuple[int, ...]) -> Shape:
    return roi[0], roi[1], roi[2]


def _tiles(key: str, roi: Shape, settings: Settings) -> dict[int, Path]:
    """Normalised tiles [batch, 1, *roi] for each batch size: the brain's middle, mirrored in different ways."""
    values = normalised(np.asanyarray(nib.load(brain_crop(settings.data, roi)).dataobj).astype(np.float32), "nonzero")
    turned = [values, values[::-1], values[:, ::-1], values[:, :, ::-1]]
    paths = {}
    for batch in BATCHES:
        paths[batch] = settings.work / f"tiles-{key}-{batch}.npy"
        np.save(paths[batch], np.ascontiguousarray(np.stack(turned[:batch])[:, None]))
    return paths


def _rows(key: str, title: str, runs: Mapping[Variant, list[dict[str, Any]]], settings: Settings) -> Rows:
    """Against PyTorch fp32 at the batch where that is fastest."""
    medians = {variant: spread([run["seconds"] for run in some]) for variant, some in runs.items()}
    baseline = min(
        told.median for (engine, precision, _), told in medians.items() if (engine, precision) == BASELINE[:2]
    )
    rows = []
    for (engine, precision, batch), told in medians.items():
        reference, found = (
            _labels(key, variant, settings) for variant in ((*BASELINE[:2], batch), (engine, precision, batch))
        )
        rows.append(
            {
                "network": key,
                "title": title,
                "engine": engine,
                "precision": precision,
                "batch": batch,
                "seconds_per_roi": round(told.median, 4),
                "ratio": round(ratio(baseline, told.median), 3),
                "seconds_low": round(told.low, 4),
                "seconds_high": round(told.high, 4),
                "runs": told.runs,
                "dice_min": round(dice_min(reference, found), 5),
                "changed_fraction": float(f"{changed_fraction(reference, found):.4g}"),
            }
        )
    return rows


def _labels(key: str, variant: Variant, settings: Settings) -> NDArray[np.uint8]:
    labels: NDArray[np.uint8] = np.load(settings.work / f"engine-{key}-{'-'.join(map(str, variant))}.npy")
    return labels
