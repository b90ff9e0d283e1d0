"""Measures an engine against the reference: every metric of a certificate, for tiles and for whole scans.

Knows no engine and no PyTorch: an engine is a function, the reference is arrays.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from voxtile_build.arrays import Array, Runner
from voxtile_build.errors import AcceptanceError
from voxtile_build.evaluation.distances import hausdorff_95
from voxtile_build.evaluation.metrics import changed_voxels, dice, mask_names, masks, probabilities
from voxtile_build.evaluation.samples import Scan
from voxtile_build.evaluation.tiles import Tile, tile_inputs
from voxtile_build.spec.output import Output
from voxtile_build.spec.spec import Spec

Record = dict[str, Any]

SMALLEST_SPREAD = 1e-3
"""Of probabilities: a reference that varies less says nothing, and rounding would be large beside it."""

SMALLEST_LOGIT_SPREAD = 1e-4
"""The same for logits, as a share of the largest one: a thousand roundings of fp32."""

SIGNIFICANT = 3
"""Digits of an error that are kept: the last bits of a float depend on the compiler and prove nothing."""


ERRORS = ("max_abs_error", "mean_abs_error", "max_abs_error_stored", "rms_error")
"""Figures of a record that may be larger in one run of a tile than in another, and that limits bound."""


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
) -> tuple[list[Record], float]:
    """Compare an engine with the reference on tiles, at one batch size.

    Args:
        spec: the model.
        engine: its name, for errors.
        run: the engine.
        reference: tiles, each with its fp32 scores [score, *roi] of every `stride`-th voxel of each axis.
        batch: tiles in one run. Tiles of several sizes are grouped by size.
        spacing: mm of a voxel along each axis of the scan.
        stride: see `reference`.
        once: run the engine only once for each size of tiles, with as many tiles as fit.

    Returns:
        A record for each tile, and the seconds for one tile: of the fastest run with tiles of the first size.

    Raises:
        AcceptanceError: a score is NaN or infinite.
    """
    sizes: dict[tuple[int, ...], list[tuple[Tile, Array]]] = {}
    for tile, scores in reference:
        sizes.setdefault(tile.roi.shape, []).append((tile, scores))
    plane = [size * stride for axis, size in enumerate(spacing) if axis != spec.tiling.slice_axis]
    records: list[Record] = []
    seconds: list[float] = []
    for same in sizes.values():
        tiles = [tile for tile, _ in same]
        worst: dict[int, Record] = {}
        fastest = math.inf
        for indices, scores, taken in _runs(spec, run, tiles, batch, once):
            fastest = min(fastest, taken)
            for index, found in zip(indices, scores, strict=True):
                where = f"tile '{tiles[index].name}' at a batch of {batch}"
                metrics = compare(same[index][1], thinned(found, stride), spec, engine, where, plane)
                record = _tile_record(tiles[index], batch, metrics)
                worst[index] = _worse(worst.get(index, record), record)
        records += worst.values()
        seconds.append(fastest / batch)
    return records, seconds[0]


def _runs(
    spec: Spec, run: Runner, tiles: Sequence[Tile], batch: int, once: bool
) -> Iterator[tuple[list[int], Array, float]]:
    """For each run the indices of its tiles, their scores [tile, score, *roi], and the seconds that it took."""
    length = batch if once else -(-len(tiles) // batch) * batch
    # The last batch is filled up from the front, so that every run has the batch size that is measured.
    order = [index % len(tiles) for index in range(length)]
    for start in range(0, length, batch):
        indices = order[start : start + batch]
        started = time.perf_counter()
        scores = run_tiles([tiles[index] for index in indices], spec, run)
        yield indices, scores, time.perf_counter() - started


def _worse(one: Record, other: Record) -> Record:
    """Of two records of one tile, the one with the larger error in any voxel, and the larger one of each error."""
    worse = max(one, other, key=lambda record: float(record["max_abs_error"]))
    return {**worse, **{name: max(one[name], other[name]) for name in ERRORS}}


def _tile_record(tile: Tile, batch: int, metrics: Mapping[str, Any]) -> Record:
    constant = {"constant": True} if tile.roi.min() == tile.roi.max() else {}
    return {"name": tile.name, "batch": batch, **metrics, **constant}


def run_tiles(tiles: Sequence[Tile], spec: Spec, run: Runner) -> Array:
    """Scores [tile, score, *roi] of tiles of one size, in one batch."""
    rois, statistics = (np.stack([getattr(tile, name) for tile in tiles]) for name in ("roi", "statistics"))
    return run(tile_inputs(spec, rois, statistics))


def thinned(scores: Array, stride: int) -> Array:
    """Every `stride`-th voxel of each axis of scores [score, *roi]."""
    return scores[(slice(None), *(slice(None, None, stride),) * (scores.ndim - 1))]


def measure_scan(spec: Spec, engine: str, scan: Scan, expected: Array, found: Array, batch: int) -> Record:
    """The record of one whole scan.

    Args:
        spec: the model.
        engine: its name, for errors.
        scan: the scan.
        expected: [score, *spatial], stitched scores of the reference.
        found: [score, *spatial], stitched scores of the engine.
        batch: tiles in one run.

    Raises:
        AcceptanceError: a score is NaN or infinite.
    """
    return {
        **describe(scan, batch),
        **compare(expected, found, spec, engine, f"scan '{scan.name}'", scan.spacing),
    }


def describe(scan: Scan, batch: int) -> Record:
    """The part of a record that names the scan."""
    return {
        "name": scan.name,
        "shape": list(scan.volume.shape),
        "spacing": list(scan.spacing),
        "sha256": scan.sha256,
        "batch": batch,
    }


def compare(expected: Array, found: Array, spec: Spec, engine: str, where: str, spacing: Sequence[float]) -> Record:
    """Every metric between the scores of the reference and those of an engine.

    Args:
        expected: [score, *spatial], the reference's scores.
        found: [score, *spatial], the engine's scores.
        spec: the model.
        engine: its name, for errors.
        where: names the tile or scan in errors.
        spacing: mm of a voxel along each spatial axis.

    Raises:
        AcceptanceError: a score of the engine is NaN or infinite, so that nothing can be measured.
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
    """Refuse scores that are NaN or infinite.

    Raises:
        AcceptanceError: names the place.
    """
    if not np.isfinite(found).all():
        raise AcceptanceError(
            f"{spec.name}: the {engine} engine is not accepted: {where}: expected finite "
            f"scores, found {int((~np.isfinite(found)).sum())} that are NaN or infinite"
        )


def compare_masks(wanted: Array, found: Array, output: Output, spacing: Sequence[float]) -> Record:
    """The metrics of the masks [label, *spatial] alone; distances in mm."""
    names, changed = mask_names(output), changed_voxels(wanted, found)
    pairs = list(zip(names, wanted, found, strict=True))
    return {
        "dice": {name: dice(one, other) for name, one, other in pairs},
        "hausdorff_95_mm": {name: _millimetres(hausdorff_95(one, other, spacing)) for name, one, other in pairs},
        "voxels": {name: int(mask.sum()) for name, mask, _ in pairs},
        "changed_by_label": {name: int((one != other).sum()) for name, one, other in pairs},
        "changed_voxels": changed,
        "changed_fraction": changed / int(np.prod(wanted.shape[1:])),
    }


def as_votes(scores: Array, output: Output) -> Array:
    """Labels [1, *spatial] as votes [label, *spatial] float32; scores of other kinds as they are."""
    if output.scores != "labels" or len(scores) == len(output.labels) > 1:
        return scores
    votes: Array = np.arange(len(output.labels)).reshape(-1, *(1,) * (scores.ndim - 1)) == scores
    return votes.astype(np.float32)


def near_boundary(expected: Array, output: Output, error: float) -> int:
    """How many voxels could change their label if every probability were off by `error`: those near a border of labels.

    Where labels exclude each other, the two most probable ones may both be off, so twice the error counts.
    """
    likely = probabilities(expected, output)
    if output.regions or output.scores == "foreground":
        return int((np.abs(likely - 0.5) <= error).any(axis=0).sum())
    if len(likely) == 1:
        return 0
    second, first = np.partition(likely, len(likely) - 2, axis=0)[-2:]
    return int((first - second <= 2 * error).sum())


def _errors(expected: Array, found: Array, output: Output) -> Record:
    """Largest and mean |Δ| of probabilities; largest and root mean square |Δ| of scores as stored, and their spread."""
    error = np.abs(probabilities(found, output) - probabilities(expected, output))
    stored = _apart(expected, found)
    together, spread = error_and_spread(expected, found, output)
    return {
        "max_abs_error": rounded(error.max()),
        "mean_abs_error": rounded(error.mean(dtype=np.float64)),
        "max_abs_error_stored": rounded(stored.max()),
        "rms_error": rounded(together),
        "spread": rounded(spread),
        **({"logits": [rounded(expected.min()), rounded(expected.max())]} if output.scores == "logits" else {}),
    }


def error_and_spread(expected: Array, found: Array, output: Output) -> tuple[float, float]:
    """The root mean square error of all scores [score, *spatial] together, and the spread of those of the reference.

    One step of the scores' type is no error: rounding makes a step of any small difference now and then.
    """
    stored = _apart(expected, found)
    beyond = np.maximum(stored - _step(expected, output), 0)
    return float(np.sqrt(np.mean(beyond**2))), _spread(expected, output)


def _apart(expected: Array, found: Array) -> Array:
    """|Δ| of scores as stored, in float64, where bytes do not wrap."""
    return np.abs(np.subtract(found, expected, dtype=np.float64))


def _step(expected: Array, output: Output) -> float:
    """The distance of two neighbours of the scores' type: rounding turns any small difference into it now and then."""
    if output.scores == "labels" or output.dtype == "fp32":
        return 0.0
    return 1.0 if output.dtype == "uint8" else float(np.spacing(np.float16(np.abs(expected).max())))


def _spread(expected: Array, output: Output) -> float:
    """The standard deviation of the reference's scores over the voxels: the root mean square over all scores."""
    values = expected.reshape(len(expected), -1)
    logits = output.scores == "logits"
    least = SMALLEST_LOGIT_SPREAD * float(np.abs(values).max()) if logits else SMALLEST_SPREAD * output.scale
    return max(float(np.sqrt(values.var(axis=1, dtype=np.float64).mean())), least)


def _millimetres(distance: float | None) -> float | None:
    return None if distance is None else rounded(distance)


def rounded(value: float) -> float:
    """`value` with SIGNIFICANT digits."""
    return float(f"{value:.{SIGNIFICANT}g}")
