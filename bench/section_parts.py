"""Parts of the road, each against what a user would have instead: tiling and stitching, reading and writing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.inferers import sliding_window_inference
from numpy.typing import NDArray

from voxtile.card import Tiling
from voxtile.io.scan import open_scan
from voxtile.io.writing import mask_image, write_image
from voxtile.tiling.extract import Cutter
from voxtile.tiling.plan import plan_tiles
from voxtile.tiling.stitch import Stitcher

from .scans import Shape, brain_files, ct_labels, ct_scan
from .settings import Settings
from .timing import interleave, ratio, spread, timed

Rows = list[dict[str, Any]]
Work = Callable[[], object]


def measure(settings: Settings) -> Rows:
    return [*stitching(settings), *reading(settings), *writing(settings)]


def compare(part: str, ways: Mapping[str, Work], settings: Settings, note: str, budget_s: float = 60) -> Rows:
    """Rows of ways that do the same; the first is what the others are measured against."""
    for work in ways.values():
        work()
    clocks = {name: timed(work) for name, work in ways.items()}
    return rows_of(part, interleave(clocks, settings.repetitions, settings.budget_s(budget_s)), note)


def rows_of(part: str, seconds: Mapping[str, list[float]], note: str = "") -> Rows:
    baseline = spread(next(iter(seconds.values()))).median
    rows = []
    for way, runs in seconds.items():
        told = spread(runs)
        figures = {"seconds": round(told.median, 5), "ratio": round(ratio(baseline, told.median), 3)}
        figures |= {"seconds_low": round(told.low, 5), "seconds_high": round(told.high, 5), "runs": told.runs}
        rows.append({"part": part, "way": way, **figures, "note": note})
    return rows


def stitching(settings: Settings) -> Rows:
    """Cutting, weighting, adding up and deciding, with a network that costs nothing; in one process, no server."""
    side, roi = (96, 48) if settings.tiny else (192, 96) if settings.quick else (288, 96)
    rows: Rows = []
    for channels in (2, 14):
        volume = np.random.default_rng(1).standard_normal((side,) * 3, dtype=np.float32)
        scores = np.random.default_rng(2).standard_normal((channels, *(roi,) * 3), dtype=np.float32)
        ways = {
            "MONAI sliding_window_inference": lambda v=volume, s=scores: stitched_by_monai(v, s),
            "Voxtile": lambda v=volume, s=scores: stitched_by_us(v, s),
        }
        note = f"{side}³, ROI {roi}³, overlap 0.25, to labels"
        rows += compare(f"tiling and stitching, {channels} scores", ways, settings, note)
    return rows


def stitched_by_monai(volume: NDArray[np.float32], scores: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Labels [x, y, z] of a network that gives `scores` [score, *roi] for every window."""
    answer = torch.from_numpy(scores)[None]

    def network(_: torch.Tensor) -> torch.Tensor:
        return answer.clone()  # MONAI weights in place what a network gave it

    with torch.inference_mode():
        found = sliding_window_inference(
            torch.from_numpy(volume)[None, None], scores.shape[1:], 1, network, overlap=0.25, mode="gaussian"
        )
        labels: NDArray[np.uint8] = found.argmax(1)[0].to(torch.uint8).numpy()
    return labels


def stitched_by_us(volume: NDArray[np.float32], scores: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The same by the client's own parts."""
    plan = plan_tiles(volume.shape, scores.shape[1:], Tiling(overlap=0.25))
    cutter = Cutter(volume[None], plan, lambda values: values, 0.0)
    stitcher, labels, done = Stitcher(plan, len(scores)), np.empty(volume.shape, np.uint8), 0

    def take(finished: Any) -> None:
        nonlocal done
        for planes in finished:
            labels[done : done + planes.shape[1]] = best(planes)
            done += planes.shape[1]

    for tile in plan:
        cutter.cut(tile)
        take(stitcher.add(tile, scores.copy()))
    take(stitcher.finish())
    return labels


def best(scores: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The index of the largest score [score, …]; by a running maximum, as the client does it."""
    winner, highest = np.zeros(scores.shape[1:], np.uint8), scores[0].copy()
    for index in range(1, len(scores)):
        winner[scores[index] > highest] = index
        np.maximum(highest, scores[index], out=highest)
    return winner


def reading(settings: Settings) -> Rows:
    rows: Rows = []
    for name, path in (
        ("MNI152 brain, uint8", brain_files(settings.data)["t1"]),
        (f"CT {_ct(settings)}, int16", ct_file(settings)),
    ):
        ways = {
            "nibabel": lambda path=path: np.asanyarray(nib.load(path).dataobj),
            "Voxtile": lambda path=path: open_scan([path], ["one"]),
        }
        rows += compare(f"reading .nii.gz, {name}", ways, settings, "")
    return rows


def writing(settings: Settings) -> Rows:
    """A mask of 25 labels on the CT's grid."""
    volume = open_scan([ct_file(settings)], ["CT"])
    image = mask_image(ct_labels(ct_shape(settings)), volume)
    target = settings.work / "written.nii.gz"
    ways = {"nibabel": partial(nib.save, image, target), "Voxtile": partial(write_image, image, target)}
    rows = compare(f"writing .nii.gz, mask {_ct(settings)}", ways, settings, "ours also syncs it to the disk")
    for row, work in zip(rows, ways.values(), strict=True):
        work()
        row["bytes"] = target.stat().st_size
    return rows


def ct_shape(settings: Settings) -> Shape:
    return (64, 64, 40) if settings.tiny else (256, 256, 150) if settings.quick else (512, 512, 300)


def ct_file(settings: Settings) -> Path:
    return ct_scan(settings.data, ct_shape(settings))


def _ct(settings: Settings) -> str:
    return "×".join(map(str, ct_shape(settings)))
