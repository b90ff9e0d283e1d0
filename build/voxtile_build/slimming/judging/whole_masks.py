"""The mask of every label of a whole scan, decided plane by plane, so that its scores are never held all at once.

Knows nothing of teachers and students: what computes the scores is a function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from voxtile.machine.memory import machine_bytes
from voxtile.tiling.plan import TilePlan
from voxtile.tiling.stitch import Stitcher
from voxtile.tiling.strips import Strip, cut_axis, most_strips, spans, tiles_of, whole
from voxtile_build.arrays import Array, Runner
from voxtile_build.certificate.stitched_scan import plan_of, score_count, stitched_planes
from voxtile_build.evaluation.metrics import masks
from voxtile_build.evaluation.samples import Scan
from voxtile_build.spec.output import Output
from voxtile_build.spec.spec import Spec

SHARE_OF_MEMORY = 8
"""Scores that are being stitched take at most this part of the machine's memory: the scan, two masks, an engine and a
network need room as well."""

Box = tuple[slice, ...]
Told = Callable[[float], None]
"""Is told which share is done."""


@dataclass(frozen=True)
class WholeMasks:
    """The masks of a scan.

    Attributes:
        decided: labels that exclude one another: [*spatial] the index of the label; else [label, *spatial] bool.
        count: of labels.
        excluding: whether labels exclude one another.
    """

    decided: NDArray[Any]
    count: int
    excluding: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along each axis."""
        return self.decided.shape if self.excluding else self.decided.shape[1:]

    def boxes(self) -> list[Box | None]:
        """The smallest box around each label; None where there is no voxel of it."""
        if self.excluding:
            return list(find_objects(self.decided.astype(np.int32) + 1, self.count))
        return [(find_objects(mask.astype(np.uint8)) or [None])[0] for mask in self.decided]

    def mask(self, index: int, box: Box) -> NDArray[np.bool_]:
        """The mask of one label within a box."""
        found: NDArray[np.bool_] = (
            self.decided[box] == index if self.excluding else self.decided[index][box].astype(bool)
        )
        return found

    def changed_voxels(self, other: WholeMasks) -> int:
        """How many voxels differ in the mask of any label."""
        differs = self.decided != other.decided
        return int(differs.sum() if self.excluding else differs.any(axis=0).sum())


def decide(
    scan: Scan, spec: Spec, run: Runner, batch: int, *, most_bytes: int | None = None, told: Told = lambda _: None
) -> WholeMasks:
    """The masks of a whole scan, cut and stitched as a client cuts and stitches it, without mirroring.

    Args:
        scan: the scan.
        spec: the model; its scores are stitched as they are.
        run: what computes the scores of tiles.
        batch: tiles in one run.
        most_bytes: for scores that are being stitched, as far as the tiles allow; None for a share of the machine's
            memory. A scan that needs more is stitched in strips, and tiles that touch two of them run twice.
        told: is told which share is done.

    Raises:
        FloatingPointError: a score is NaN or infinite.
    """
    plan = plan_of(scan, spec)
    strips = _strips(plan, score_count(spec), machine_bytes() // SHARE_OF_MEMORY if most_bytes is None else most_bytes)
    names, shape = _count(spec.output), scan.volume.shape[1:]
    excluding = not (spec.output.regions or spec.output.scores == "foreground")
    kind = np.min_scalar_type(max(names - 1, 0)) if excluding else np.dtype(bool)
    found = np.empty(shape if excluding else (names, *shape), kind)
    run = _told(run, sum(len(tiles_of(plan, strip)) for strip in strips), told)
    for strip in strips:
        first, rows = 0, slice(*strip.rows)
        for planes in stitched_planes(scan, spec, plan, run, batch, strip):
            if not np.isfinite(planes).all():
                raise FloatingPointError("NaN or infinite scores")
            last = first + planes.shape[1]
            place = (slice(first, last), *(rows if axis == strip.axis else slice(None) for axis in (1, 2)))
            found[place if excluding else (slice(None), *place)] = (
                planes.argmax(axis=0) if excluding else masks(planes, spec.output)
            )
            first = last
    return WholeMasks(found, names, excluding)


def _count(output: Output) -> int:
    """How many masks there are."""
    return 1 if output.scores == "foreground" else len(output.labels)


def _strips(plan: TilePlan, scores: int, most_bytes: int) -> list[Strip]:
    """The scan in as few strips as the memory allows."""
    axis = cut_axis(plan)
    strips = [whole(plan.image, plan.image)]
    for count in range(2, most_strips(plan, axis) + 1):
        if max(Stitcher.predicted_bytes(plan, scores, strip) for strip in strips) <= most_bytes:
            break
        strips = [Strip(axis, rows, rows) for rows in spans(plan.image[axis], count)]
    return strips


def _told(run: Runner, total: int, told: Told) -> Runner:
    done = 0

    def running(feed: Any) -> Array:
        nonlocal done
        scores = run(feed)
        done += len(feed["roi"])
        told(min(done / total, 1.0))
        return scores

    return running
