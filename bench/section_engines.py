"""Seconds a ROI of every engine and precision, at every batch, against PyTorch fp32 in the same run.

Engines run their entries' own files with the entries' own parameters, each in a process of its own. Dice and changed
voxels compare the labels of the same tiles.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median

import nibabel as nib
import numpy as np

from voxtile_build.repository.config import read_config

from .engines import Job, run_tiles
from .entries import ENGINE_TABLES, LEVELS, Entry, build_levels, engine_levels
from .figures import Rows, agreement, spread
from .scans import brain_crop, by
from .settings import Settings, say
from .subjects import Subject, subject_of
from .turns import file_name, take_turns
from .ways import normalised

PLAIN = "PyTorch, fp32"
FILES = {"openvino": "model.xml", "onnxruntime": "model.onnx", "tensorrt": "model.plan"}


def measure(_: str, settings: Settings) -> Rows:
    """Returns the rows of all networks that have a table of engines."""
    keys = [key for key in ENGINE_TABLES if engine_levels(key, settings)]
    return [row for key in keys for row in _measured(key, settings)]


def _measured(key: str, settings: Settings) -> Rows:
    """Runs all variants of one network, taking turns."""
    subject = subject_of(key, settings)
    # On a CPU a batch gains large networks nothing, and twice as many processes would not fit into memory.
    batches = settings.pick((1, 2), (1,), (1,)) if key == "unet" else (1,)
    jobs = {variant: job for batch in batches for variant, job in _jobs(subject, batch, settings).items()}
    say(f"engines of {subject.title}: {len(jobs)} variants")
    runs = take_turns({name: (run_tiles, job) for name, job in jobs.items()}, settings, f"engines {key}", 90)
    seconds = {variant: [run["seconds"] for run in some] for variant, some in runs.items()}
    # Compared with PyTorch at the batch where it is fastest.
    baseline = min((median(some) for variant, some in seconds.items() if variant.startswith(PLAIN)), default=0.0)
    title, rows = f"{subject.title}, ROI {by(subject.job['roi'])}", []
    for variant, some in seconds.items():
        engine, precision, batch = variant.split(", ")
        labels = [np.load(jobs[which]["mask"]) for which in (f"{PLAIN}, {batch}", variant)]
        names = {"network": key, "title": title, "engine": engine, "precision": precision, "batch": int(batch)}
        measured = spread(some, baseline)
        rows.append({**names, "seconds_per_roi": measured.pop("seconds"), **measured, **agreement(*labels)})
    return rows


def _jobs(subject: Subject, batch: int, settings: Settings) -> dict[str, Job]:
    """Returns what can be run at one batch, by "engine, precision, batch"."""
    half = "bf16 autocast" if settings.device == "cpu" else "fp16 autocast"
    spec, levels = subject.model.spec, engine_levels(subject.key, settings)
    jobs: dict[str, Job] = {PLAIN: subject.job, f"PyTorch, {half}": {**subject.job, "half": True}}
    if spec.network.name == "SwinUNETR":
        jobs["PyTorch flash, fp32"] = {**subject.job, "flash": True}
    for level, entries in build_levels(subject.model, subject.key, levels, settings).items():
        for engine, entry in entries.items():
            job = {**_engine_job(entry, settings), "intensity": spec.whole_scan_intensity}
            jobs[f"{engine}, {LEVELS[level].get(engine, level)}"] = job
    tiles = _tiles(subject, batch, settings)
    return {
        f"{name}, {batch}": {**job, "tiles": tiles, "mask": tiles.with_stem(file_name(f"{tiles.stem} {name}"))}
        for name, job in jobs.items()
    }


def _engine_job(entry: Entry, settings: Settings) -> Job:
    """Returns what a process needs to run an entry's engine as the server does."""
    folder = settings.repository / entry.engine_entry
    told = {key: value.string_value for key, value in read_config(folder).parameters.items()}
    properties = {key: told[key] for key in ("INFERENCE_PRECISION_HINT", "PERFORMANCE_HINT") if key in told}
    return {
        "engine": entry.engine, "file": folder / "1" / FILES[entry.engine], "device": settings.device,
        "properties": properties,
    }  # fmt: skip


def _tiles(subject: Subject, batch: int, settings: Settings) -> Path:
    """Returns a file of normalised tiles [batch, 1, *roi]: the middle of the brain, and the same mirrored."""
    image = nib.load(brain_crop(settings.data, subject.job["roi"]))
    values = normalised(image.get_fdata(dtype=np.float32), nonzero=True)
    path = settings.work / f"tiles-{subject.key}-{batch}.npy"
    np.save(path, np.stack([values, values[::-1]][:batch])[:, None])
    return path
