"""Writes the certificate as a page for people: certificate.md, and pictures of where voxels change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from voxtile.card import StudentOf
from voxtile_build.evaluation.samples import Scan

Array = NDArray[Any]

PAGE = "certificate.md"
MOST_TILE_ROWS = 64
INCH = 4.0


@dataclass(frozen=True)
class Picture:
    """One plane of a scan.

    Attributes:
        title: what it shows.
        image: [row, column] float32, the scan.
        borders: [row, column] bool, the borders of fp32's masks.
        changed: [row, column] bool, the voxels whose label changes.
    """

    title: str
    image: Array
    borders: Array
    changed: Array


def picture_of(scan: Scan, wanted: Array, found: Array) -> Picture:
    """The plane along the last axis in which most voxels change; the middle one if none change.

    Args:
        scan: the scan.
        wanted: [label, *spatial] bool, the masks of fp32.
        found: [label, *spatial] bool, the masks of the engine.
    """
    changed = (wanted != found).any(axis=0)
    each = changed.reshape(-1, changed.shape[-1]).sum(axis=0)
    plane = int(each.argmax()) if each.any() else changed.shape[-1] // 2
    borders = np.zeros(changed.shape[:2], bool)
    for mask in wanted[..., plane]:
        for axis in (0, 1):
            borders |= np.diff(mask, axis=axis, append=np.take(mask, [-1], axis=axis))
    total, here = int(changed.sum()), int(each[plane])
    title = f"{scan.name}, plane {plane} of {changed.shape[-1]}: {here} of {total} changed voxels"
    return Picture(title, scan.volume[0, ..., plane].astype(np.float32), borders, changed[..., plane])


def write_page(folder: Path, content: Mapping[str, Any], pictures: Sequence[Picture]) -> None:
    """Write certificate.md and a PNG for each picture into `folder`."""
    names = []
    for index, picture in enumerate(pictures):
        names.append(f"changed_{index}.png")
        _draw(picture, folder / names[-1])
    (folder / PAGE).write_text("\n".join(_page(content, pictures, names)) + "\n", encoding="utf-8")


def _draw(picture: Picture, path: Path) -> None:
    figure = Figure(figsize=(INCH, INCH), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    # The first axis goes to the right, the second one up.
    axes.imshow(picture.image.T, cmap="gray", origin="lower", interpolation="nearest")
    for layer, colour in ((picture.borders, (0.3, 0.7, 1.0, 0.6)), (picture.changed, (1.0, 0.2, 0.1, 1.0))):
        overlay = np.zeros((*layer.T.shape, 4), np.float32)
        overlay[layer.T] = colour
        axes.imshow(overlay, origin="lower", interpolation="nearest")
    axes.set_axis_off()
    axes.set_title(picture.title, fontsize="small", wrap=True)
    # Without this the file names the version of matplotlib, and the bytes change with it.
    figure.savefig(path, dpi=100, metadata={"Software": None})


def _page(content: Mapping[str, Any], pictures: Sequence[Picture], names: Sequence[str]) -> Iterable[str]:
    verdict = "accepted" if content["accepted"] else "not accepted"
    yield f"# {content['model']}, {content['engine']}, {content['precision']}: {verdict}"
    yield ""
    yield "What this engine gives, against the same network in fp32 PyTorch. All numbers are those of certificate.json."
    yield ""
    device = content["device"]
    served = content["serves_on"].upper()
    yield f"Measured on the {device['kind'].upper()} {device['name']}; the server runs it on a {served}."
    yield ""
    yield from _student(content.get("student_of"))
    limits, metrics = content["acceptance"], content["metrics"]
    yield "| metric | found | limit |"
    yield "| --- | --- | --- |"
    error = _limit("at most", limits["max_abs_error"])
    yield f"| largest error of a probability | {metrics['max_abs_error']:g} | {error} |"
    if "max_logit_error" in metrics:
        limit = _limit("at most", limits.get("max_logit_error"))
        yield f"| largest error of a logit, as a share of their range | {metrics['max_logit_error']:g} | {limit} |"
    together = _limit("at most", limits["max_score_error"])
    yield f"| error of all scores, as a share of their spread | {metrics['score_error']:g} | {together} |"
    yield f"| smallest Dice of a label | {metrics['dice_min']:.6f} | {_limit('at least', limits['min_dice'])} |"
    share = _limit("at most", limits["max_changed"])
    yield f"| share of changed voxels | {metrics['changed_fraction']:.3g} | {share} |"
    for warning in content["warnings"]:
        yield ""
        yield f"Warning: {warning}."
    yield from _scans(content["scans"])
    for picture, name in zip(pictures, names, strict=True):
        yield ""
        yield f"![{picture.title}]({name})"
    if pictures:
        yield ""
        yield "Red: voxels whose label changes. Blue: borders of the labels in fp32."
    yield from _tiles(content["tiles"])
    facts = content.get("precision_facts", {})
    yield from _search(facts.get("search"))
    if facts.get("layers"):
        yield ""
        yield f"Layers by type: {', '.join(f'{count} in {kind}' for kind, count in facts['layers'].items())}."
    yield ""
    machine = content["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    yield f"Measured on {machine['cpu']} ({machine['cores']} cores) with {versions}."


def _student(fields: Mapping[str, Any] | None) -> Iterable[str]:
    """Of whom the network is a student: the rest of the page says nothing of that."""
    if fields is None:
        return
    student = StudentOf.model_validate(fields)
    yield f"The network is a {student.in_words}. The teacher's weights have the SHA-256 {student.weights_sha256}."
    yield "What follows compares the engine with the student, not with the teacher."
    yield ""


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
            similarity = _value(scan["dice"][name], ".6f")
            yield f"| {name} | {voxels} | {similarity} | {_value(scan['hausdorff_95_mm'][name], 'g')} |"


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


def _value(value: float | None, form: str) -> str:
    return "–" if value is None else f"{value:{form}}"
