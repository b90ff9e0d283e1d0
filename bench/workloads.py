"""Which networks on which scans, and by which ways: the rows of scans.json as jobs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib

from .engines import Job, Way
from .entries import FREE_BATCH_SIZE, REDUCED, Changes, Entry, build_entries, build_levels, engine_of, free_entry
from .scans import Shape, brain_crop, by, half_air
from .settings import Settings
from .subjects import Subject, served_ct, subject_of
from .ways import WindowedScan, nnunet_scan, voxtile_scan

OWN_PREDICTOR = "6 nnU-Net's own predictor"
FIRST = "1 MONAI, PyTorch fp32"
SINGLE = 2
"""White matter: the class that the narrow entries return alone."""


@dataclass(frozen=True)
class Row:
    """A way to segment the workload's scan."""

    name: str  # in the table
    make: Callable[[Job], Way]  # makes the way ready
    job: Job  # what it is called with; the mask, and the address of the server, are added
    entry: Entry | None = None  # the served entry that it needs
    label: int | None = None  # the value of the only class in the mask; None for all classes


@dataclass(frozen=True)
class Workload:
    """A table."""

    name: str  # in the data
    title: str  # for readers
    rows: tuple[Row, ...]  # the others are compared with the first one
    budget_s: float  # for the repetitions of a full run


def workloads(section: str, settings: Settings) -> list[Workload]:
    """Returns the workloads of a section: "unet", "swinunetr", "nnunet" or "transport"."""
    if section == "transport":
        return [_free_network(1, settings), _free_network(14, settings)]
    full = not (settings.quick or settings.tiny)
    if section == "unet":
        return [_brain("unet", settings.pick((184, 224, 184), (128, 128, 128), (40, 36, 33)), 150, settings)]
    if section == "nnunet":
        brain = _brain("nnunet", settings.pick((144, 192, 144), (96, 96, 96), (64, 64, 64)), 360, settings)
        return [brain, _ct(settings)] if full else [brain]
    if not full:
        return [_brain("swinunetr-trained", (96, 96, 96), 60, settings)]
    crop: Shape = (192, 224, 184) if settings.device == "cuda" else (168, 168, 168)
    return [_brain(section, crop, 420, settings), _half_air(section, crop, settings)]


def _brain(key: str, crop: Shape, budget_s: float, settings: Settings) -> Workload:
    """Returns a network on a brain crop, with every kind of row."""
    subject, scan = subject_of(key, settings), brain_crop(settings.data, crop)
    job = {**subject.job, "scan": scan}
    export = settings.data / f"{key}-{by(job['roi'], 'x')}-{settings.device}.onnx"
    rows = [*_torch_rows(job, settings), *_runtime_rows({**job, "file": export}, settings)]
    rows += _our_rows(subject, scan, settings)
    how = f"ROI {by(job['roi'])}, overlap {job['overlap']:g}"
    if "folder" in job:
        rows.append(Row(OWN_PREDICTOR, nnunet_scan, job))
        how = f"patch {by(job['roi'])}, no mirroring"
    return Workload(key, f"{subject.title}, {how}, MNI152 brain {by(crop)}", tuple(rows), budget_s)


def _half_air(key: str, crop: Shape, settings: Settings) -> Workload:
    """Returns what skipping is worth: the first row, ours, and ours without the empty tiles."""
    subject, scan = subject_of(key, settings), half_air(settings.data, crop)
    entry = build_entries(subject.model, _narrow(subject, settings), settings)[f"{key}-narrow"]
    rows = [
        *_torch_rows({**subject.job, "scan": scan}, settings)[:1],
        *_ours("5 Voxtile, the same entry", entry, scan, subject, settings, label=SINGLE),
        *_ours("5 + empty tiles skipped", entry, scan, subject, settings, label=SINGLE, options={"skip_empty": True}),
    ]
    title = f"{subject.title}, ROI {by(subject.job['roi'])}, MNI152 brain {by(crop)} with as much air beside it"
    return Workload(f"{key} half air", title, tuple(rows), 260)


def _ct(settings: Settings) -> Workload:
    """Returns a CT that is resampled both ways; only nnU-Net's own predictor does the same, so it is the first row."""
    subject, scan = subject_of("nnunet-ct", settings), served_ct(settings)
    first = Row(OWN_PREDICTOR, nnunet_scan, {**subject.job, "scan": scan})
    shape = by(nib.load(scan).shape)
    title = f"{subject.title}, patch {by(subject.job['roi'])}, resampled to 3 mm and back, made-up CT {shape}"
    return Workload("nnunet-ct", title, (first, *_our_rows(subject, scan, settings)), 300)


def _free_network(scores: int, settings: Settings) -> Workload:
    """Returns what the wire takes: all scores in fp32, all narrow, and of many scores also the mask of one alone."""
    crop: Shape = settings.pick((184, 232, 184), (168, 168, 168), (40, 36, 33))
    roi, scan = (settings.pick(96, 96, 16),) * 3, brain_crop(settings.data, crop)
    wide, narrow = (free_entry(scores, *types, roi, settings) for types in (("fp32", "fp32"), ("int16", "fp16")))
    job = {"scan": scan, "roi": roi, "overlap": 0.25, "as_it_is": True, "warm_up": brain_crop(settings.data, roi)}
    plain = {**job, "engine": "grpc"}
    rows = [
        Row("1 MONAI over a plain client, fp32 gRPC", WindowedScan, plain, wide),
        Row("1 in batches of four", WindowedScan, {**plain, "batch": FREE_BATCH_SIZE}, wide),
        Row("5 Voxtile, fp32 both ways, gRPC", voxtile_scan, {**job, "shared_memory": False}, wide),
        Row("5 + shared memory", voxtile_scan, job, wide),
        Row("5 + int16 in, fp16 out", voxtile_scan, job, narrow),
    ]
    if scores > 1:
        one = free_entry(scores, "int16", "uint8", roi, settings, one_mask=True)
        rows.append(Row("5 + int16 in, one mask of them as uint8 out", voxtile_scan, job, one))
    title = f"a network that costs nothing, scores: {scores}, ROI {by(roi)}, MNI152 brain {by(crop)}"
    return Workload(f"free {scores}", title, tuple(rows), 120)


def _torch_rows(job: Job, settings: Settings) -> list[Row]:
    """Returns the rows of PyTorch. MONAI's first one also leaves one class's mask, which the narrow entries return."""
    half, fast = REDUCED[settings.device], {"flash": True}
    swin = "spec" in job and job["spec"].network.name == "SwinUNETR"
    rows: dict[str, Job] = {FIRST: {"single": SINGLE} if "spec" in job else {}}
    if not settings.tiny:
        rows |= {"1b + use_flash_attention": fast} if swin else {}
        rows |= {f"2 MONAI, PyTorch {half} autocast": {"half": True}}
        rows |= {"2b + use_flash_attention": {"half": True, **fast}} if swin else {}
    if settings.with_compile:
        rows |= {f"3 MONAI, torch.compile {half}": {"half": True, "flash": swin, "compile": True}}
    return [Row(name, WindowedScan, {**job, **more}) for name, more in rows.items()]


def _runtime_rows(job: Job, settings: Settings) -> list[Row]:
    """Returns the rows of a plain export; on a GPU only ONNX Runtime's."""
    rows: dict[str, Job] = {} if settings.tiny else {"4 MONAI over ONNX Runtime fp32": {"engine": "onnxruntime"}}
    if not settings.tiny and settings.device == "cpu":
        rows["4 MONAI over OpenVINO as installed"] = {"engine": "openvino", "properties": {}}
    if settings.device == "cpu":
        properties = {"INFERENCE_PRECISION_HINT": "f32"}
        rows["4 MONAI over OpenVINO fp32"] = {"engine": "openvino", "properties": properties}
    return [Row(name, WindowedScan, {**job, **more}) for name, more in rows.items()]


def _our_rows(subject: Subject, scan: Path, settings: Settings) -> list[Row]:
    """Returns our rows, one step at a time; each step keeps those before it."""
    key, half, nnunet = subject.key, REDUCED[settings.device], "folder" in subject.job
    levels = ["fp32"] if nnunet or settings.tiny else ["fp32", half]
    plain = build_levels(subject.model, key, levels, settings)
    narrow = build_entries(subject.model, _narrow(subject, settings), settings)
    best, label = narrow[f"{key}-narrow"], None if nnunet else SINGLE
    told = f"5 + {half}, fp16 in and out" if nnunet else f"5 + {half}, int16 in, one mask as uint8 out"
    rows = []
    for level, entries in plain.items():
        rows += _ours(f"5 Voxtile {level}", entries, scan, subject, settings, shared_memory=False)
    rows += _ours(told, best, scan, subject, settings, label=label, shared_memory=False)
    rows += _ours("5 + shared memory", best, scan, subject, settings, label=label)
    return rows + _ours("5 + int8", narrow.get(f"{key}-narrow-int8", {}), scan, subject, settings)


def _narrow(subject: Subject, settings: Settings) -> dict[str, Changes]:
    """Returns the entries of least traffic, in the reduced precision; of nnU-Net's networks in int8 too.

    MONAI's take int16 and return one class as uint8. nnU-Net's preprocessing gives fractions, so those take fp16.
    """
    precision, half, name = f"precision.{engine_of(settings.device)}", REDUCED[settings.device], f"{subject.key}-narrow"
    if "folder" in subject.job:
        types = {"input.dtype": "fp16", "output.dtype": "fp16"}
        return {name: {**types, precision: half}, f"{name}-int8": {**types, precision: "int8"}}
    changes = {"input.dtype": "int16", "output.scores": "foreground", "output.dtype": "uint8", precision: half}
    return {name: {**changes, "output.foreground": subject.model.spec.output.labels[SINGLE].name}}


def _ours(
    name: str, entries: Mapping[str, Entry], scan: Path, subject: Subject, settings: Settings, *,
    label: int | None = None, **more: Any,
) -> list[Row]:  # fmt: skip
    """Returns a row of ours, none if there is no entry for the device; its first run, on one tile, is not measured."""
    entry = entries.get(engine_of(settings.device))
    job = {"scan": scan, "warm_up": subject.tile, **more}
    return [Row(name, voxtile_scan, job, entry, label)] if entry else []
