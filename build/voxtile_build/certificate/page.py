"""The certificate as a page for people: certificate.md, and pictures of where voxels change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from voxtile_build.evaluation.samples import Scan

Array = NDArray[Any]

FILE = "certificate.md"
MOST_TILE_ROWS = 64
INCH = 4.0


@dataclass(frozen=True)
class Picture:
    """One plane of a scan: image [row, column] as stored, borders of fp32's masks and changed voxels as booleans."""

    title: str
    image: Array
    borders: Array
    flips: Array


def picture_of(scan: Scan, wanted: Array, found: Array) -> Picture:
    """The plane of the last axis in which most voxels change, the middle one where none do; masks [label, *spatial]."""
    flips = (wanted != found).any(axis=0)
    each = flips.reshape(-1, flips.shape[-1]).sum(axis=0)
    plane = int(each.argmax()) if each.any() else flips.shape[-1] // 2
    borders = np.zeros(flips.shape[:2], bool)
    for mask in wanted[..., plane]:
        for axis in (0, 1):
            borders |= np.diff(mask, axis=axis, append=np.take(mask, [-1], axis=axis))
    total, here = int(flips.sum()), int(each[plane])
    title = f"{scan.name}, plane {plane} of {flips.shape[-1]}: {here} of {total} changed voxels"
    return Picture(title, scan.volume[0, ..., plane].astype(np.float32), borders, flips[..., plane])


def write_page(folder: Path, content: Mapping[str, Any], pictures: Sequence[Picture]) -> None:
    """Write `folder`/certificate.md and a PNG for each picture."""
    names = []
    for index, picture in enumerate(pictures):
        names.append(f"flipped_{index}.png")
        _draw(picture, folder / names[-1])
    (folder / FILE).write_text("\n".join(_page(content, pictures, names)) + "\n", encoding="utf-8")


def _draw(picture: Picture, path: Path) -> None:
    figure = Figure(figsize=(INCH, INCH), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    # Rows are the first axis: left to right in a scan that is stored so; up is the second.
    axes.imshow(picture.image.T, cmap="gray", origin="lower", interpolation="nearest")
    for layer, colour in ((picture.borders, (0.3, 0.7, 1.0, 0.6)), (picture.flips, (1.0, 0.2, 0.1, 1.0))):
        overlay = np.zeros((*layer.T.shape, 4), np.float32)
        overlay[layer.T] = colour
        axes.imshow(overlay, origin="lower", interpolation="nearest")
    axes.set_axis_off()
    axes.set_title(picture.title, fontsize="small", wrap=True)
    # Without it the file names the version that drew it.
    figure.savefig(path, dpi=100, metadata={"Software": None})


def _page(content: Mapping[str, Any], pictures: Sequence[Picture], names: Sequence[str]) -> Iterable[str]:
    verdict = "accepted" if content["accepted"] else "not accepted"
    yield f"# {content['model']}, {content['engine']}, {content['precision']}: {verdict}"
    yield ""
    yield "What this engine gives, against the same network in fp32 PyTorch. The figures are those of certificate.json."
    yield ""
    limits, figures = content["acceptance"], content["figures"]
    yield "| figure | found | limit |"
    yield "| --- | --- | --- |"
    error = _limit("at most", limits["max_abs_error"])
    yield f"| largest error of a probability | {figures['max_abs_error']:g} | {error} |"
    if "max_logit_error" in figures:
        limit = _limit("at most", limits.get("max_logit_error"))
        yield f"| largest error of a logit, as a share of their range | {figures['max_logit_error']:g} | {limit} |"
    yield f"| smallest Dice of a label | {figures['dice_min']:.6f} | {_limit('at least', limits['min_dice'])} |"
    share = _limit("at most", limits["max_changed"])
    yield f"| share of changed voxels | {figures['changed_fraction']:.3g} | {share} |"
    for note in content["notes"]:
        yield ""
        yield f"Note: {note}."
    yield from _scans(content["scans"])
    for picture, name in zip(pictures, names, strict=True):
        yield ""
        yield f"![{picture.title}]({name})"
    if pictures:
        yield ""
        yield "Red: voxels whose label changes. Blue: borders of the labels in fp32."
    yield from _tiles(content["tiles"])
    yield from _search(content.get("precision_facts", {}).get("search"))
    yield ""
    machine = content["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    yield f"Measured on {machine['cpu']} ({machine['cores']} cores) with {versions}."


def _scans(scans: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    for scan in scans:
        yield ""
        yield f"## Scan {scan['name']}"
        yield ""
        yield (
            f"{scan['changed_voxels']} voxels change ({scan['changed_fraction']:.3g} of all); "
            f"{scan['near_boundary_voxels']} lie within the measured error of a border between labels. "
            f"Largest error {scan['max_abs_error']:g}, mean {scan['mean_abs_error']:g}. Batches of {scan['batch']}."
        )
        yield ""
        yield "| label | voxels | Dice | 95 % Hausdorff distance, mm |"
        yield "| --- | --- | --- | --- |"
        for name, voxels in scan["voxels"].items():
            similarity = _figure(scan["dice"][name], ".6f")
            yield f"| {name} | {voxels} | {similarity} | {_figure(scan['hausdorff_95_mm'][name], 'g')} |"


def _tiles(tiles: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    yield ""
    yield "## Tiles"
    yield ""
    yield "| tile | batch | largest error | mean error | changed voxels | within the error of a border |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for tile in tiles[:MOST_TILE_ROWS]:
        name = f"{tile['name']} (constant: not judged)" if tile.get("constant") else tile["name"]
        yield (
            f"| {name} | {tile['batch']} | {tile['max_abs_error']:g} | {tile['mean_abs_error']:g} | "
            f"{tile['changed_voxels']} | {tile['near_boundary_voxels']} |"
        )


def _search(search: Mapping[str, Any] | None) -> Iterable[str]:
    if search is None:
        return
    yield ""
    yield "## The search for a precision"
    yield ""
    for step in search["path"]:
        kept = f", {len(step['kept'])} layers kept higher" if step["kept"] else ""
        outcome = "accepted" if step["accepted"] else "; ".join(step["refused_because"])
        yield f"- {step['precision']}{kept}: {outcome}"


def _limit(relation: str, limit: float | None) -> str:
    return "none" if limit is None else f"{relation} {limit:g}"


def _figure(value: float | None, form: str) -> str:
    return "–" if value is None else f"{value:{form}}"
