"""The ladder: a teacher in fp32 PyTorch, its engines in fp32 and reduced, its student's engines in fp32 and reduced.

All rungs segment one scan from file to file, in turns, through a real server of their own but for the first. What
they say is compared with the first one's mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from voxtile_build.evaluation.metrics import dice
from voxtile_build.repository.folds import Model

from ..engines import Job
from ..entries import OPEN, Changes, Entry, build_entries, changed, engine_of
from ..figures import Rows
from ..machine import machine_facts
from ..nnunet import prepared
from ..scans import Shape, by, made
from ..section_scans import mask_path, measure_workload
from ..settings import Settings
from ..ways import WindowedScan, nnunet_scan, voxtile_scan
from ..workloads import Row, Workload

FIRST = "teacher, PyTorch fp32"
ENGINES = ("openvino", "onnxruntime")
"""Of a CPU."""
BF16 = ("avx512_bf16", "amx_bf16")
"""What a CPU needs to gain anything from bf16; without it OpenVINO computes bf16 models in fp32."""


@dataclass(frozen=True)
class Pair:
    """A teacher and its student, as they are measured.

    Attributes:
        name: of the ladder, in the data.
        title: for readers.
        teacher: to build.
        student: to build.
        source: what the teacher was given as: a spec or an nnU-Net folder.
        scan: a file; RAS, on the grid that the networks were made for.
        roi: voxels of a tile, in the scan's order.
        budget_s: seconds for the repetitions.
    """

    name: str
    title: str
    teacher: Model
    student: Model
    source: Path
    scan: Path
    roi: Shape
    budget_s: float = 600


def measure(pair: Pair, settings: Settings) -> Rows:
    """Returns a row for each rung: times, masks compared, size of what is served, operations, share of the limit."""
    workload = Workload(pair.name, pair.title, tuple(_rows(pair, settings)), pair.budget_s)
    rows = measure_workload(workload, settings)
    masks = {row["row"]: _labels(mask_path(workload, row["row"], settings)) for row in rows}
    costs = {"teacher": cost_of(pair.teacher), "student": cost_of(pair.student)}
    for row, rung in ((row, next(one for one in workload.rows if one.name == row["row"])) for row in rows):
        row |= costs[row["row"].partition(",")[0]]
        row["ms_per_tile"] = round(1000 * row["engine_seconds"] / row["tiles"], 2)
        row["gflops"] = round(1000 * row["gflop"] / row["ms_per_tile"], 2)
        row["dice"] = _by_label(masks[FIRST], masks[row["row"]], pair.teacher)
        row["bytes"] = 4 * row["parameters"] if rung.entry is None else served_bytes(rung.entry, settings)
    return rows


def levels(extensions: list[str]) -> tuple[str, ...]:
    """Returns the precisions that a CPU with these extensions gains from, fp32 first."""
    return ("fp32", *(["bf16"] if set(BF16) & set(extensions) else []), "int8")


def cost_of(model: Model) -> dict[str, Any]:
    """Returns the parameters of a network, and the 10⁹ operations of one tile, as PyTorch counts them."""
    network, spec = model.folds[0].load().eval(), model.spec
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, *spec.roi_shape))
    parameters = sum(one.numel() for one in network.parameters())
    return {"parameters": parameters, "gflop": round(counter.get_total_flops() / 1e9, 3)}


def served_bytes(entry: Entry, settings: Settings) -> int:
    """Returns the bytes of what the server loads for an entry's engine."""
    return sum(file.stat().st_size for file in (settings.repository / entry.engine_entry / "1").glob("model.*"))


def middle(scan: Path, shape: Shape, folder: Path) -> Path:
    """Returns a file in `folder` with the middle voxels of `scan`, at most `shape` of them."""

    def make(path: Path) -> None:
        image = nib.load(scan)
        sides = [(max(there - size, 0) // 2, size) for there, size in zip(image.shape, shape, strict=True)]
        nib.save(image.slicer[tuple(slice(start, start + size) for start, size in sides)], path)

    return made(folder / f"middle-{by(shape, 'x')}-{scan.name}", make)


def _rows(pair: Pair, settings: Settings) -> list[Row]:
    """Returns the rungs. What cannot be built has none; the settings say why."""
    job: Job = {"scan": pair.scan, "roi": pair.roi, "overlap": pair.teacher.spec.tiling.overlap, "device": "cpu"}
    if pair.source.is_dir():
        rows = [Row(FIRST, nnunet_scan, {**job, "folder": pair.source})]
    else:
        rows = [Row(FIRST, WindowedScan, {**job, "engine": "torch", "spec": pair.teacher.spec})]
    extensions = machine_facts("cpu")["matrix_extensions"]
    warm_up = middle(pair.scan, pair.roi, settings.data)
    for who, model in (("teacher", pair.teacher), ("student", pair.student)):
        for level, entry in _entries(f"{pair.name}-{who}", model, levels(extensions), warm_up, settings).items():
            rows.append(Row(f"{who}, {level}", voxtile_scan, {"scan": pair.scan, "warm_up": warm_up}, entry))
    return rows


def _entries(name: str, model: Model, wanted: tuple[str, ...], tile: Path, settings: Settings) -> Mapping[str, Entry]:
    """Builds a model at each level for the CPU's engine, with open limits; returns the entries by level.

    In fp32 it is built for every engine that its spec names: which one is the faster depends on the CPU.
    """
    main, spec = engine_of("cpu"), model.spec
    sample = prepared(spec.nnunet, tile) if spec.nnunet else tile
    changes: Changes = {
        "acceptance.scans": ((sample,),), "precision.calibration": ((sample,),), "serving.max_batch_size": 1,
        "serving.warm_up": False, **{f"acceptance.{key}": value for key, value in OPEN.items()},
    }  # fmt: skip
    # What the student is worth is measured here; whether it may be published was decided when it was made.
    model = Model(changed(spec, changes).model_copy(update={"distillation": None}), model.folds)
    engines = dict.fromkeys(wanted, main)
    engines |= {f"fp32, {other}": other for other in spec.serving.engines if other in ENGINES and other != main}
    names = {level: f"{name}-{level.replace(', ', '-')}" for level in engines}
    variants: dict[str, Changes] = {
        names[level]: {
            "serving.engines": (engine,), "serving.default_engine": engine, f"precision.{engine}": level.split(",")[0]
        }
        for level, engine in engines.items()
    }  # fmt: skip
    built = build_entries(model, variants, settings)
    found = {level: built[names[level]].get(engine) for level, engine in engines.items()}
    order = sorted(found, key=lambda level: wanted.index(level.split(",")[0]))
    return {level: entry for level in order if (entry := found[level]) is not None}


def _labels(path: Path) -> Any:
    return np.asanyarray(nib.load(path).dataobj)


def _by_label(reference: Any, found: Any, model: Model) -> dict[str, float]:
    """Returns the Dice of each label that either mask shows, without the background."""
    labels = {label.name: label.value for label in model.spec.output.labels if label.value}
    values = {name: dice(reference == value, found == value) for name, value in labels.items()}
    return {name: round(value, 4) for name, value in values.items() if value is not None}
