"""Which networks on which scans, and by which ways: the rows of scans.json as jobs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from voxtile_build.repository.folds import Model

from .density_network import MODEL_SPACING
from .entries import (
    REDUCED,
    Changes,
    Entry,
    build_entries,
    build_entry,
    build_levels,
    changed,
    clone,
    engine_of,
    model_of,
    nnunet_model,
    on_scan,
)
from .networks import DEFAULT_WIDTHS, Network, Shape, trained_steps
from .nnunet_folder import brain_folder, ct_folder
from .prepared_scans import prepared
from .scans import CT_LABELS, brain_crop, ct_scan, half_air
from .settings import Settings
from .way_torch import find_network

OWN_PREDICTOR = "6 nnU-Net's own predictor"
FIRST = "1 MONAI, PyTorch fp32"
NARROW_LABEL = 2
"""White matter: the class whose mask alone the narrow entries give."""


@dataclass(frozen=True)
class Row:
    """A way to segment the workload's scan. label: where the mask has this class alone, its value.

    entry: the served entry that it needs. environment: of its process.
    """

    name: str
    job: Mapping[str, Any]
    label: int | None = None
    entry: Entry | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Workload:
    """rows: the first is what the others are measured against. budget_s: for repetitions in a full run."""

    name: str
    title: str
    scan: Path
    rows: tuple[Row, ...]
    budget_s: float


def workloads(section: str, settings: Settings) -> list[Workload]:
    """The workloads of a section: unet, swinunetr or nnunet."""
    return {"unet": _unet, "swinunetr": _swinunetr, "nnunet": _nnunet}[section](settings)


def _unet(settings: Settings) -> list[Workload]:
    if settings.tiny:
        return [_monai("unet", "tiny", (40, 36, 33), 20, settings)]
    crop: Shape = (128, 128, 128) if settings.quick else (184, 224, 184)
    return [_monai("unet", "unet", crop, 150, settings)]


def _swinunetr(settings: Settings) -> list[Workload]:
    """A quick run takes the trained one, small as it is; a full one feature size 24 (48 on a GPU)."""
    if settings.quick:
        return [_swin("swinunetr-trained", (96, 96, 96), 60, settings)]
    large: Shape = (168, 168, 168) if settings.device == "cpu" else (192, 224, 184)
    return [_swin("swinunetr", large, 420, settings), _half_air("swinunetr half air", "swinunetr", large, settings)]


def _swin(key: str, crop: Shape, budget_s: float, settings: Settings) -> Workload:
    return _monai(key, key, crop, budget_s, settings)


def _nnunet(settings: Settings) -> list[Workload]:
    if settings.tiny:
        return [_nnunet_brain((4, 8, 16), (32,) * 3, (48, 40, 36), settings)]
    if settings.quick:
        return [_nnunet_brain(DEFAULT_WIDTHS, (64,) * 3, (96, 96, 96), settings)]
    ct: Shape = (512, 512, 300) if settings.device == "cuda" else (512, 512, 200)
    return [
        _nnunet_brain(DEFAULT_WIDTHS, (96,) * 3, (144, 192, 144), settings),
        _nnunet_ct(DEFAULT_WIDTHS, (96,) * 3, ct, settings),
    ]


def feature_size(settings: Settings) -> int:
    return 48 if settings.device == "cuda" else 24


def network_of(key: str, settings: Settings) -> Network:
    return find_network(key, settings.data, feature_size(settings))


def _monai(name: str, key: str, crop: Shape, budget_s: float, settings: Settings) -> Workload:
    """A network of MONAI's on a brain crop, every row of the ladder."""
    network, scan = network_of(key, settings), brain_crop(settings.data, crop)
    common = common_job(network, scan, settings)
    tile = brain_crop(settings.data, network.roi)
    model = model_of(network, tile, settings)
    in_process = [
        *_torch_rows(common, settings, swin=network.spec_name == "SwinUNETR"),
        *_runtime_rows(common, settings),
    ]
    title = f"{network.title}, ROI {_times(network.roi)}, overlap {network.overlap:g}, MNI152 brain {_times(crop)}"
    return Workload(name, title, scan, (*in_process, *_ladder(name, model, settings, scan, tile)), budget_s)


def _half_air(name: str, key: str, crop: Shape, settings: Settings) -> Workload:
    """What skipping is worth: the first row, ours, and ours without the empty tiles."""
    network, scan = network_of(key, settings), half_air(settings.data, crop)
    warm = brain_crop(settings.data, network.roi)
    model = model_of(network, warm, settings)
    rows = [Row(FIRST, {**common_job(network, scan, settings), "single": NARROW_LABEL})]
    base = name.removesuffix(" half air")
    entry = _best(base, model, settings)
    if entry is not None:
        rows.append(_served("5 Voxtile, the same entry", entry, scan, warm, label=NARROW_LABEL))
        rows.append(_served("5 + empty tiles skipped", entry, scan, warm, label=NARROW_LABEL, skip_empty=True))
    title = f"{network.title}, ROI {_times(network.roi)}, MNI152 brain {_times(crop)} with as much air beside it"
    return Workload(name, title, scan, tuple(rows), 260)


def _nnunet_brain(widths: tuple[int, ...], roi: Shape, crop: Shape, settings: Settings) -> Workload:
    folder = brain_folder(settings.data, widths, roi)
    scan = brain_crop(settings.data, crop)
    common: dict[str, Any] = {
        "way": "torch", "folder": str(folder), "scan": str(scan), "roi": list(roi), "overlap": 0.5, "rule": "all",
        "transposed": True, "cropped": True, "device": settings.device,
        "onnx": str(settings.data / f"{folder.parent.name}.onnx"),
    }  # fmt: skip
    tile = brain_crop(settings.data, roi)
    model = scanned(nnunet_model(folder, "nnunet", settings), tile)
    rows = [*_torch_rows(common, settings, swin=False), *_runtime_rows(common, settings)]
    rows += _nnunet_ladder("nnunet", model, settings, scan, tile)
    rows.append(_own_predictor(folder, scan, roi, settings))
    network = f"nnU-Net PlainConvUNet {widths[0]}…{widths[-1]}"
    taught = how_taught(settings.data, "brain", widths)
    title = f"{network}, {taught}, patch {_times(roi)}, no mirroring, MNI152 brain {_times(crop)}"
    return Workload("nnunet", title, scan, tuple(rows), 360)


def _nnunet_ct(widths: tuple[int, ...], roi: Shape, shape: Shape, settings: Settings) -> Workload:
    """With resampling both ways, so only nnU-Net's own predictor does the same work: it is the first row."""
    folder, scan = ct_folder(settings.data, widths, roi), ct_scan(settings.data, shape)
    tile = ct_scan(settings.data, (128, 128, 64))
    model = scanned(nnunet_model(folder, "nnunet-ct", settings), tile, calibration=scan)
    rows = [_own_predictor(folder, scan, roi, settings)]
    rows += _nnunet_ladder("nnunet-ct", model, settings, scan, tile)
    taught = how_taught(settings.data, "chest", widths)
    title = (
        f"nnU-Net PlainConvUNet {widths[0]}…{widths[-1]}, {taught}, {CT_LABELS} labels, "
        f"patch {_times(roi)}, resampled to {MODEL_SPACING:g} mm and back, made-up CT {_times(shape)}"
    )
    return Workload("nnunet-ct", title, scan, tuple(rows), 300)


def how_taught(data: Path, kind: str, widths: tuple[int, ...]) -> str:
    """How the network came by its weights."""
    steps = trained_steps(data, kind, widths)
    if steps is not None:
        return f"{steps} steps of training on this scan"
    return "weights set and fitted" if kind == "chest" else "weights not trained"


def scanned(model: Model, scan: Path, calibration: Path | None = None) -> Model:
    """The same nnU-Net model, its certificate taken on a small scan, its calibration done on that or on another."""
    ready = prepared(model, scan)
    other = ready if calibration is None else prepared(model, calibration)
    return Model(changed(model.spec, on_scan(model.spec, ready, other)), model.folds)


def common_job(network: Network, scan: Path, settings: Settings) -> dict[str, Any]:
    """What the in-process ways of a network have in common."""
    key = "tiny" if settings.tiny else network.key
    return {
        "way": "torch", "network": key, "data": str(settings.data), "feature_size": feature_size(settings),
        "scan": str(scan), "roi": list(network.roi), "overlap": network.overlap, "rule": "nonzero",
        "device": settings.device, "onnx": str(settings.data / f"{key}-{feature_size(settings)}.onnx"),
    }  # fmt: skip


def _torch_rows(common: Mapping[str, Any], settings: Settings, *, swin: bool) -> list[Row]:
    half = REDUCED[settings.device]
    rows = [Row(FIRST, dict(common) if common.get("cropped") else {**common, "single": NARROW_LABEL})]
    if settings.tiny:
        return rows
    if swin:
        rows.append(Row("1b + use_flash_attention", {**common, "flash": True}))
    rows.append(Row(f"2 MONAI, PyTorch {half} autocast", {**common, "half": True}))
    if swin:
        rows.append(Row("2b + use_flash_attention", {**common, "half": True, "flash": True}))
    if settings.with_compile:
        rows.append(Row(f"3 MONAI, torch.compile {half}", {**common, "half": True, "flash": swin, "compile": True}))
    return rows


def _runtime_rows(common: Mapping[str, Any], settings: Settings) -> list[Row]:
    job = {**common, "way": "runtime"}
    if settings.tiny:
        return [Row("4 MONAI over OpenVINO fp32", {**job, "runtime": "openvino", "precision": "f32"})]
    rows = [Row("4 MONAI over ONNX Runtime fp32", {**job, "runtime": "onnxruntime", "precision": "default"})]
    if settings.device == "cpu":
        for precision, said in (("default", "as installed"), ("f32", "fp32")):
            rows.append(Row(f"4 MONAI over OpenVINO {said}", {**job, "runtime": "openvino", "precision": precision}))
    return rows


def _ladder(name: str, model: Model, settings: Settings, scan: Path, warm: Path) -> list[Row]:
    """Ours, one step at a time; each step keeps those before it."""
    rows = []
    engine, half = engine_of(settings.device), REDUCED[settings.device]
    levels = build_levels(model, name, ["fp32"] if settings.tiny else ["fp32", half], settings)
    if (plain := levels["fp32"].get(engine)) is not None:
        rows.append(_served("5 Voxtile fp32", plain, scan, warm, shared_memory=False))
    if (lower := levels.get(half, {}).get(engine)) is not None:
        rows.append(_served(f"5 Voxtile {lower.precision}", lower, scan, warm, shared_memory=False))
    best = _best(name, model, settings)
    if best is None:
        return rows
    told = f"{best.precision}, int16 in, one mask as uint8 out"
    if not settings.tiny:
        rows.append(_served(f"5 + {told}", best, scan, warm, label=NARROW_LABEL, shared_memory=False))
    rows.append(_served("5 + shared memory", best, scan, warm, label=NARROW_LABEL))
    several = clone(best, f"{best.name}-x2", 2, 1, settings)
    rows.append(_served("5 + two instances of one thread", several, scan, warm, label=NARROW_LABEL))
    return rows


def _nnunet_ladder(name: str, model: Model, settings: Settings, scan: Path, warm: Path) -> list[Row]:
    """As `_ladder`; nnU-Net's own preprocessing gives fractions, so that only fp16 is narrow."""
    rows = []
    engine = engine_of(settings.device)
    if (plain := build_levels(model, name, ["fp32"], settings)["fp32"].get(engine)) is not None:
        rows.append(_served("5 Voxtile fp32", plain, scan, warm, shared_memory=False))
    if settings.tiny:
        return rows
    narrow: Changes = {("input", "dtype"): "fp16", ("output", "dtype"): "fp16"}
    half, least = f"{name}-narrow", f"{name}-narrow-int8"
    precisions = {half: REDUCED[settings.device], least: "int8"}
    made = build_entries(model, {key: _reduced(narrow, word, settings) for key, word in precisions.items()}, settings)
    if (best := made[half].get(engine)) is not None:
        rows.append(_served(f"5 + {best.precision}, fp16 in and out", best, scan, warm, shared_memory=False))
        rows.append(_served("5 + shared memory", best, scan, warm))
    if (lowest := made[least].get(engine)) is not None:
        rows.append(_served("5 + int8", lowest, scan, warm))
    return rows


def _best(name: str, model: Model, settings: Settings) -> Entry | None:
    """int16 in, one class as uint8 out, in the reduced precision."""
    narrow: Changes = {
        ("input", "dtype"): "int16",
        ("output", "scores"): "foreground",
        ("output", "dtype"): "uint8",
        ("output", "foreground"): model.spec.output.labels[NARROW_LABEL].name,
    }
    return build_entry(model, f"{name}-narrow", _reduced(narrow, REDUCED[settings.device], settings), settings)


def _reduced(changes: Changes, word: str, settings: Settings) -> Changes:
    """The changes, and the precision `word` for the device's engine."""
    return {**changes, ("precision", engine_of(settings.device)): word}


def _served(name: str, entry: Entry, scan: Path, warm: Path, label: int | None = None, **options: Any) -> Row:
    """A row of ours. warm: a scan of one tile, for what only the first run of an engine takes."""
    job = {
        "way": "voxtile", "model": entry.name, "engine_entry": entry.engine_entry, "instances": entry.instances,
        "scan": str(scan), "warm_up": str(warm), **options,
    }  # fmt: skip
    return Row(name, job, label, entry)


def _own_predictor(folder: Path, scan: Path, roi: Shape, settings: Settings) -> Row:
    job = {"way": "nnunet", "folder": str(folder), "scan": str(scan), "roi": list(roi), "device": settings.device}
    return Row(OWN_PREDICTOR, job)


def _times(shape: Shape) -> str:
    return "×".join(map(str, shape))
