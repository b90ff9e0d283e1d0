"""The two ends of `make demo`: settings for the machine at hand, and what was gained.

    python -m models.demo settings OUT
    python -m models.demo gain OUT --model NAME [--started SECONDS]

`settings` writes OUT/demo.toml: bf16 where the CPU computes in it, and the demo's scan, which the engines are certified
on. `gain` runs a sample of the scan's tiles through MONAI and fp32 PyTorch, compares the mask with theirs,
and says what the demo gained. It ends with 1 where the mask is not PyTorch's.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from monai.inferers import sliding_window_inference

from models.training.mni152 import FILES
from voxtile.card import Card
from voxtile.cli.progress import duration
from voxtile.tiling.plan import TilePlan, plan_tiles
from voxtile_build.engines.openvino.variants import has_bf16
from voxtile_build.errors import BuildError
from voxtile_build.importers.network import load_network
from voxtile_build.repository.card import get_card
from voxtile_build.repository.config import read_config
from voxtile_build.spec.spec import load_spec

SCAN = FILES["t1"].name
MODELS, SET_UP = Path(__file__).parent, Path(".venv/.installed")
IN_A_ROW = 3
"""Windows of the sample along each axis: where windows overlap by half, 27 of them settle a cube of a window's size."""

NOTABLE = 1.5
"""From this ratio on, a gain needs no explanation."""

Labels = npt.NDArray[np.integer[Any]]
Box = tuple[slice, ...]


def write_settings(out: Path) -> Path:
    """Writes OUT/demo.toml and returns its path."""
    precision = "bf16" if has_bf16() else "fp32"
    settings = out / "demo.toml"
    settings.write_text(
        "# Written by `make demo` for this machine.\n"
        f'[precision]\nopenvino = "{precision}"\n\n[acceptance]\nscans = ["{SCAN}"]\n',
        encoding="utf-8",
    )
    return settings


@dataclass(frozen=True)
class Sample:
    """Windows in the middle of a scan, and the voxels that no other window reaches.

    Attributes:
        windows: what the windows cover, as an index into the scan's axes.
        settled: the voxels that these windows alone decide, likewise.
        tiles: the number of windows.
    """

    windows: Box
    settled: Box
    tiles: int


def sample_of(plan: TilePlan) -> Sample:
    """The sample of a plan: IN_A_ROW windows along each axis, or all where there are fewer."""
    rows = [_row(starts, roi) for starts, roi in zip(plan.starts, plan.roi, strict=True)]
    windows, settled, counts = zip(*rows, strict=True)
    return Sample(windows, settled, math.prod(counts))


def _row(starts: Sequence[int], roi: int) -> tuple[slice, slice, int]:
    """Along one axis: what the middle windows cover, what they alone cover, and their number."""
    if len(starts) <= IN_A_ROW + 1:  # the last start is moved to the volume's edge, so MONAI would not find it again
        return slice(starts[0], starts[-1] + roi), slice(starts[0], starts[-1] + roi), len(starts)
    first = min((len(starts) - IN_A_ROW) // 2, len(starts) - 1 - IN_A_ROW)
    chosen = starts[first : first + IN_A_ROW]
    before = starts[first - 1] + roi if first else 0
    return slice(chosen[0], chosen[-1] + roi), slice(before, starts[first + IN_A_ROW]), IN_A_ROW


def within(sample: Sample) -> Box:
    """The settled voxels as an index into the windows' box."""
    pairs = zip(sample.settled, sample.windows, strict=True)
    return tuple(slice(voxels.start - box.start, voxels.stop - box.start) for voxels, box in pairs)


@dataclass(frozen=True)
class Pytorch:
    """What fp32 PyTorch gives for the sample: labels [x, y, z] of the windows' box, and seconds for one tile."""

    labels: Labels
    tile_seconds: float


def run_pytorch(model: str, image: nib.Nifti1Image, sample: Sample) -> Pytorch:
    """Runs the sample's windows as MONAI does without a server, on all of the CPU's cores."""
    spec = load_spec(MODELS / f"{model}.toml")
    network = load_network(spec).eval()
    values = np.asarray(image.dataobj, np.float64)
    inside = values[values != 0]
    normal = torch.from_numpy(((values - inside.mean()) / inside.std()).astype(np.float32))[None, None]
    tiling = spec.tiling
    with torch.inference_mode():
        network(normal[(..., *(slice(0, size) for size in tiling.roi_size))])  # the first run also prepares
        started = time.perf_counter()
        scores = sliding_window_inference(
            normal[(..., *sample.windows)],
            tiling.roi_size,
            spec.serving.max_batch_size,
            network,
            overlap=tiling.overlap,
            mode=tiling.mode,
            sigma_scale=tiling.sigma_scale,
        )
        seconds = time.perf_counter() - started
    return Pytorch(scores[0].argmax(0).numpy(), seconds / sample.tiles)


@dataclass(frozen=True)
class Agreement:
    """How far two label maps of the same voxels agree.

    Attributes:
        dice: of each label, by its name.
        changed: voxels with another label.
        voxels: all voxels.
    """

    dice: dict[str, float]
    changed: int
    voxels: int


def compare(found: Labels, expected: Labels, card: Card) -> Agreement:
    """Compares two label maps of one shape; a label that neither shows has no Dice."""
    dice = {}
    for label in card.labels[1:]:
        one, other = found == label.value, expected == label.value
        if one.any() or other.any():
            dice[label.name] = 2 * int((one & other).sum()) / int(one.sum() + other.sum())
    return Agreement(dice, int((found != expected).sum()), found.size)


def gain(out: Path, model: str, started: float | None) -> tuple[list[str], bool]:
    """The demo's last lines, and whether the mask is PyTorch's within the limits that the spec gives an engine."""
    repository = out / "model_repository"
    card = get_card(read_config(repository / model), repository / model)
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    image, mask = nib.load(out / SCAN), nib.load(out / "mask.nii.gz")
    sample = sample_of(plan_tiles(image.shape, card.roi_size, card.tiling))
    pytorch = run_pytorch(model, image, sample)
    agreement = compare(np.asarray(mask.dataobj)[sample.settled], pytorch.labels[within(sample)], card)
    limits = load_spec(MODELS / f"{model}.toml").acceptance
    good = agreement.changed <= limits.max_changed * agreement.voxels
    good &= all(dice >= limits.min_dice for dice in agreement.dice.values())
    lines = [
        "",
        f"{model} on {SCAN}: {_size(image.shape)} voxels, {report['tiles']} tiles of {_size(card.roi_size)}",
        *_seconds(report, card, pytorch, sample),
        *_agreement(agreement, card),
        *_places(out, model, card),
        *_elapsed(started),
        "next: make serve, and in a second terminal:",
        f"  .venv/bin/voxtile segment {out / SCAN} --model {model} --output mask.nii.gz",
    ]
    return lines, good


def _seconds(report: dict[str, Any], card: Card, pytorch: Pytorch, sample: Sample) -> list[str]:
    """What a scan takes, from its file to its labels; PyTorch's seconds are those of its tiles alone."""
    mine = report["seconds"]["total"] - report["seconds"]["write"]
    theirs = pytorch.tile_seconds * report["tiles"]
    ways = "PyTorch fp32", f"{card.engine} {card.certificates[card.engine].precision}"
    before, now = (f"  {way:{max(map(len, ways))}}" for way in ways)
    return [
        f"{before}  {pytorch.tile_seconds:.3f} s a tile, {theirs:6.1f} s a scan; {sample.tiles} tiles run, the rest "
        "is extrapolated",
        f"{now}  {mine / report['tiles']:.3f} s a tile, {mine:6.1f} s a scan, with reading and stitching",
        f"  {theirs / mine:.1f} times as fast, on {os.cpu_count()} CPU cores; these are means with stitching, the "
        "build's figures are of the fastest tile",
        *_why_little(theirs / mine),
    ]


def _why_little(ratio: float) -> list[str]:
    """Why nothing to speak of was gained, on a CPU that computes in fp32 alone."""
    if ratio >= NOTABLE or has_bf16():
        return []
    return [
        "  why no more: this CPU has no bf16, and in fp32 both sides compute the same; int8 is not tried, because its "
        "calibration",
        '  does not fit into the demo\'s minutes ([precision] openvino = "int8" in a spec builds it)',
    ]


def _agreement(agreement: Agreement, card: Card) -> list[str]:
    dice = ", ".join(f"{name} {value:.4f}" for name, value in agreement.dice.items())
    certified = card.certificates[card.engine]
    changed = f"{agreement.changed:,} of {agreement.voxels:,} voxels changed"
    by_certificate = f"Dice ≥ {certified.dice_min:.4f}, {certified.changed_fraction:.4%} of voxels changed"
    return [
        f"  against PyTorch, where those tiles lie: Dice {dice}; {changed}",
        f"  by the certificate, on the whole scan: {by_certificate}",
    ]


def _places(out: Path, model: str, card: Card) -> list[str]:
    entry = out / "model_repository" / f"{model}_{card.engine}"
    page = next(iter(sorted(entry.glob("*/certificate.md"))))
    places = {"mask": "mask.nii.gz", "picture": "preview.png", "report": "report.json"}
    return [*(f"  {what:12} {out / name}" for what, name in places.items()), f"  {'certificate':12} {page}"]


def _elapsed(started: float | None) -> list[str]:
    """How long everything took; what was installed in this run is told apart."""
    if started is None:
        return []
    whole = time.time() - started
    installed = SET_UP.stat().st_mtime - started if SET_UP.exists() else 0
    split = f": {duration(installed)} to install, {duration(whole - installed)} for the demo" if installed > 0 else ""
    return [f"  {duration(whole)} in all{split}"]


def _size(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description="The two ends of `make demo`.")
    parser.add_argument("what", choices=("settings", "gain"))
    parser.add_argument("out", type=Path, metavar="OUT", help="the demo's folder")
    parser.add_argument("--model", default="brain-unet", metavar="NAME", help="the demo's model")
    parser.add_argument(
        "--started", type=float, metavar="SECONDS", help="when `make demo` began, as seconds since 1970"
    )
    options = parser.parse_args(arguments)
    if options.what == "settings":
        sys.stdout.write(f"{write_settings(options.out)}\n")
        return 0
    try:
        lines, good = gain(options.out, options.model, options.started)
    except (OSError, BuildError) as error:
        sys.stderr.write(f"demo: {error}; run make demo, which makes it\n")
        return 2
    sys.stdout.write("\n".join(lines) + "\n")
    if not good:
        sys.stderr.write("demo: the mask is not the one that PyTorch gives; look at the certificate\n")
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
