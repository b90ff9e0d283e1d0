"""Runs a whole scan tile by tile with the client's own tiler and stitcher; needs no PyTorch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from voxtile.card import Provenance
from voxtile.tiling.extract import Cutter, tile_batches, tile_scores
from voxtile.tiling.plan import plan_tiles, tile_shape
from voxtile.tiling.stitch import Stitcher
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
    card = card_of(spec, "", {}, Provenance(network="", weights_sha256="", onnx_sha256=""))
    shape = scan.volume.shape[1:]
    # References are stitched with MONAI's windows, whatever the client's semantics.
    tiling = card.tiling.model_copy(update={"semantics": "monai"})
    plan = plan_tiles(shape, tile_shape(card, shape), tiling)
    cutter = Cutter(scan.volume, plan, lambda values: values, card.input.padding, card.slice_axis)

    def answers() -> Iterator[Array]:
        for tiles in tile_batches(iter(plan), cutter, NO_FLIPS, batch):
            statistics = np.broadcast_to(scan.statistics, (len(tiles.values), *scan.statistics.shape))
            yield run(tile_inputs(spec, tiles.values, statistics))

    scores = tile_scores(answers(), NO_FLIPS, card.slice_axis)
    stitcher = Stitcher(plan, len(spec.output.labels) if card.output.kind == "labels" else card.output.scores)
    planes: list[Array] = []
    for tile, found in zip(plan, scores, strict=True):
        planes += (finished.copy() for finished in stitcher.add(tile, as_votes(found, spec.output)))
    planes += (finished.copy() for finished in stitcher.finish())
    return np.concatenate(planes, axis=1)
