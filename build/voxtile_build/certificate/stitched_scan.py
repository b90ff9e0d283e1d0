"""Runs a whole scan tile by tile with the client's own tiler and stitcher; needs no PyTorch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from voxtile.card import Card, Provenance
from voxtile.tiling.extract import Cutter, tile_batches, tile_scores
from voxtile.tiling.plan import TilePlan, plan_tiles, tile_shape
from voxtile.tiling.stitch import Stitcher
from voxtile.tiling.strips import Strip, tiles_of
from voxtile_build.arrays import Array, Runner
from voxtile_build.evaluation.evaluate import as_votes
from voxtile_build.evaluation.samples import Scan
from voxtile_build.evaluation.tiles import tile_inputs
from voxtile_build.repository.card import card_of
from voxtile_build.spec.spec import Spec

NO_FLIPS = ((),)


def stitch(scan: Scan, spec: Spec, run: Runner, batch: int) -> Array:
    """Stitched scores of a whole scan.

    Args:
        scan: the scan.
        spec: the model.
        run: what computes the scores of tiles.
        batch: tiles in one run.

    Returns:
        [score, *spatial] float32; where scores are labels, votes [label, *spatial].
    """
    # References are stitched with MONAI's windows, whatever the client's semantics.
    plan = plan_of(scan, spec.model_copy(update={"tiling": spec.tiling.model_copy(update={"semantics": "monai"})}))
    return np.concatenate([planes.copy() for planes in stitched_planes(scan, spec, plan, run, batch)], axis=1)


def plan_of(scan: Scan, spec: Spec) -> TilePlan:
    """Where the tiles of a scan lie for a client."""
    card, shape = _card(spec), scan.volume.shape[1:]
    return plan_tiles(shape, tile_shape(card, shape), card.tiling)


def score_count(spec: Spec) -> int:
    """How many stitched scores a voxel has; labels are stitched as votes for each of them."""
    return len(spec.output.labels) if spec.output.scores == "labels" else spec.output.score_count


def stitched_planes(
    scan: Scan, spec: Spec, plan: TilePlan, run: Runner, batch: int, strip: Strip | None = None
) -> Iterator[Array]:
    """Stitched scores of a scan as they are finished; memory for one ROI's depth of them is held.

    Args:
        scan: the scan.
        spec: the model.
        plan: of `plan_of`.
        run: what computes the scores of tiles.
        batch: tiles in one run.
        strip: the part of each plane that is wanted; None for all of it.

    Yields:
        [score, n, *plane] float32, the next n planes along axis 0; a view that the next step overwrites.
    """
    card = _card(spec)
    tiles = list(plan) if strip is None else tiles_of(plan, strip)
    cutter = Cutter(scan.volume, plan, lambda values: values, card.input.padding, card.slice_axis)

    def answers() -> Iterator[Array]:
        for some in tile_batches(iter(tiles), cutter, NO_FLIPS, batch):
            statistics = np.broadcast_to(scan.statistics, (len(some.values), *scan.statistics.shape))
            yield run(tile_inputs(spec, some.values, statistics))

    stitcher = Stitcher(plan, score_count(spec), strip=strip)
    for tile, found in zip(tiles, tile_scores(answers(), NO_FLIPS, card.slice_axis), strict=True):
        yield from stitcher.add(tile, as_votes(found, spec.output))
    yield from stitcher.finish()


def _card(spec: Spec) -> Card:
    """The card that a client would get; nothing of it depends on engines or weights."""
    return card_of(spec, "", {}, Provenance(network="", weights_sha256="", onnx_sha256=""))
