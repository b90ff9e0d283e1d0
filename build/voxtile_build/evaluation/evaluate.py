"""An engine against the reference: every figure of a certificate, for tiles and for whole scans.

Knows no engine and no PyTorch: an engine is a function, the reference is arrays.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from voxtile_build.arrays import Array, Runner
from voxtile_build.errors import AcceptanceError
from voxtile_build.evaluation.distances import hausdorff_95
from voxtile_build.evaluation.metrics import changed_voxels, dice, mask_names, masks, probabilities
from voxtile_build.evaluation.samples import Scan, Tile, tile_inputs
from voxtile_build.spec.output import Output
from voxtile_build.spec.spec import Spec

SIGNIFICANT = 3
"""Digits kept of errors: the last bits of a float are the compiler's choice and prove nothing."""


def measure_tiles(
    spec: Spec,
    engine: str,
    run: Runner,
    reference: Sequence[tuple[Tile, Array]],
    batch: int,
    *,
    spacing: Sequence[float],
    stride: int = 1,
    once: bool = False,
) -> tuple[list[dict[str, Any]], float]:
    """One record a tile at this batch size, and the seconds of the fastest run divided by the batch.

    reference: tiles, and their scores [score, *roi] in fp32, every `stride`-th voxel of each axis. spacing: mm of a
    voxel, an axis of the scan each. once: run the engine once for each size of tiles, for the first of them only.
    Tiles of several sizes go each with their like; the seconds are those of the first size.
    """
    sizes: dict[tuple[int, ...], list[tuple[Tile, Array]]] = {}
    for tile, scores in reference:
        sizes.setdefault(tile.roi.shape, []).append((tile, scores))
    measured = [_measure_size(spec, engine, run, same, batch, spacing, stride, once) for same in sizes.values()]
    return [record for records, _ in measured for record in records], measured[0][1]


def _measure_size(
    spec: Spec,
    engine: str,
    run: Runner,
    reference: Sequence[tuple[Tile, Array]],
    batch: int,
    spacing: Sequence[float],
    stride: int,
    once: bool,
) -> tuple[list[dict[str, Any]], float]:
    """`measure_tiles` for tiles of one size."""
    tiles = [tile for tile, _ in reference]
    length = batch if once else -(-len(tiles) // batch) * batch
    # The last batch is filled up from the front: every run has the size that is claimed.
    order = [index % len(tiles) for index in range(length)]
    records: dict[int, dict[str, Any]] = {}
    fastest = float("inf")
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        begun = time.perf_counter()
        scores = run_tiles([tiles[index] for index in chosen], spec, run)
        fastest = min(fastest, time.perf_counter() - begun)
        for index, found in zip(chosen, scores, strict=True):
            where = f"tile '{tiles[index].name}' at a batch of {batch}"
            pair = reference[index][1], thinned(found, stride)
            figures = compare(*pair, spec, engine, where, _plane(spec, spacing, stride))
            record = {"name": tiles[index].name, "batch": batch, **figures}
            if tiles[index].roi.min() == tiles[index].roi.max():
                record["constant"] = True
            records[index] = max(records.get(index, record), record, key=lambda one: float(one["max_abs_error"]))
    return list(records.values()), fastest / batch


def run_tiles(tiles: Sequence[Tile], spec: Spec, run: Runner) -> Array:
    """Scores [tile, score, *roi] of the tiles as one batch."""
    rois, figures = (np.stack([getattr(tile, name) for tile in tiles]) for name in ("roi", "figures"))
    return run(tile_inputs(spec, rois, figures))


def thinned(scores: Array, stride: int) -> Array:
    """Every `stride`-th voxel of each axis of scores [score, *roi]."""
    return scores[(slice(None), *(slice(None, None, stride),) * (scores.ndim - 1))]


def measure_scan(spec: Spec, engine: str, scan: Scan, expected: Array, found: Array, batch: int) -> dict[str, Any]:
    """The record of one whole scan; `expected` and `found`: stitched scores [score, *spatial]."""
    return {
        **describe(scan, batch),
        **compare(expected, found, spec, engine, f"scan '{scan.name}'", scan.spacing),
    }


def describe(scan: Scan, batch: int) -> dict[str, Any]:
    """Which scan it was."""
    return {
        "name": scan.name,
        "shape": list(scan.volume.shape),
        "spacing": list(scan.spacing),
        "sha256": scan.sha256,
        "batch": batch,
    }


def compare(
    expected: Array, found: Array, spec: Spec, engine: str, where: str, spacing: Sequence[float]
) -> dict[str, Any]:
    """Every figure between scores [score, *spatial] of the reference and of the engine.

    Raises AcceptanceError where the engine gives NaN or infinity, for no figure could be taken then.
    """
    check_finite(found, spec, engine, where)
    expected, found = (as_votes(scores, spec.output) for scores in (expected, found))
    errors = _errors(expected, found, spec.output)
    wanted_masks, found_masks = masks(expected, spec.output), masks(found, spec.output)
    return {
        **errors,
        "near_boundary_voxels": near_boundary(expected, spec.output, errors["max_abs_error"]),
        **compare_masks(wanted_masks, found_masks, spec.output, spacing),
    }


def check_finite(found: Array, spec: Spec, engine: str, where: str) -> None:
    """Raises AcceptanceError with the place where scores are not finite."""
    if not np.isfinite(found).all():
        raise AcceptanceError(
            f"{spec.name}: the {engine} engine is not accepted: {where}: expected finite "
            f"scores, found {int((~np.isfinite(found)).sum())} of NaN or infinity"
        )


def compare_masks(wanted: Array, found: Array, output: Output, spacing: Sequence[float]) -> dict[str, Any]:
    """Figures of the masks [label, *spatial] alone; distances in mm."""
    names, changed = mask_names(output), changed_voxels(wanted, found)
    pairs = list(zip(names, wanted, found, strict=True))
    return {
        "dice": {name: dice(one, other) for name, one, other in pairs},
        "hausdorff_95_mm": {name: _millimetres(hausdorff_95(one, other, spacing)) for name, one, other in pairs},
        "voxels": {name: int(mask.sum()) for name, mask, _ in pairs},
        "changed_voxels": changed,
        "changed_fraction": changed / int(np.prod(wanted.shape[1:])),
    }


def as_votes(scores: Array, output: Output) -> Array:
    """A tile of labels [1, *roi] as votes [label, *roi]; everything else as it is."""
    if output.scores != "labels" or len(scores) == len(output.labels) > 1:
        return scores
    votes: Array = np.arange(len(output.labels)).reshape(-1, *(1,) * (scores.ndim - 1)) == scores
    return votes.astype(np.float32)


def near_boundary(expected: Array, output: Output, error: float) -> int:
    """Voxels that an error of this size in every probability could flip: those at the border of two labels.

    Where labels exclude each other, both of the two most probable may be off, so twice the error counts.
    """
    likely = probabilities(expected, output)
    if output.regions or output.scores == "foreground":
        return int((np.abs(likely - 0.5) <= error).any(axis=0).sum())
    if len(likely) == 1:
        return 0
    second, first = np.partition(likely, len(likely) - 2, axis=0)[-2:]
    return int((first - second <= 2 * error).sum())


def summary(tiles: Sequence[Mapping[str, Any]], scans: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The figures that acceptance asks for: the worst over all tiles and scans; Dice and flips of scans.

    Constant tiles are told of and not judged: where a normalisation divides rounding errors by their own size, a deep
    network's answer to them is noise in PyTorch as well.
    """
    records = [record for record in (*tiles, *scans) if "max_abs_error" in record]
    errors = [record for record in records if not record.get("constant")] or records
    similarities = [value for scan in scans for value in scan["dice"].values() if value is not None]
    return {
        "max_abs_error": max(record["max_abs_error"] for record in errors),
        "mean_abs_error": max(record["mean_abs_error"] for record in errors),
        "dice_min": min(similarities, default=1.0),
        "changed_fraction": max((scan["changed_fraction"] for scan in scans), default=0.0),
        **_logit_error([record for record in errors if "logits" in record]),
    }


def _logit_error(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The largest |Δ| of a logit as a share of the range of all; nothing where scores are no logits."""
    if not records:
        return {}
    lows, highs = zip(*(record["logits"] for record in records), strict=True)
    error = max(record["max_abs_error_stored"] for record in records)
    return {"max_logit_error": rounded(error / ((max(highs) - min(lows)) or 1.0))}


def _errors(expected: Array, found: Array, output: Output) -> dict[str, Any]:
    """Largest and mean |Δ| of the probabilities, the largest |Δ| of the scores as stored, and the ends of logits."""
    error = np.abs(probabilities(found, output) - probabilities(expected, output))
    stored = np.abs(found.astype(np.float64) - expected.astype(np.float64))
    return {
        "max_abs_error": rounded(error.max()),
        "mean_abs_error": rounded(error.mean(dtype=np.float64)),
        "max_abs_error_stored": rounded(stored.max()),
        **({"logits": [rounded(expected.min()), rounded(expected.max())]} if output.scores == "logits" else {}),
    }


def _plane(spec: Spec, spacing: Sequence[float], stride: int) -> list[float]:
    """Spacing of a tile's axes."""
    return [size * stride for axis, size in enumerate(spacing) if axis != spec.tiling.slice_axis]


def _millimetres(distance: float | None) -> float | None:
    return None if distance is None else rounded(distance)


def rounded(value: float) -> float:
    """With the digits that mean something."""
    return float(f"{value:.{SIGNIFICANT}g}")
