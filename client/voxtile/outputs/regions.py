"""Writes the mask of each region of a model whose regions overlap: one 4D NIfTI file, 1 where the region is.

The mask itself holds one value a voxel, so a region that is painted later covers those before it; here none is covered.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from voxtile.card import Card
from voxtile.chains.scores import region_masks
from voxtile.errors import ModelError
from voxtile.io.geometry import spacing_of
from voxtile.io.writing import mask_image, write_image
from voxtile.outputs.base import Output, Result


def check_regions(card: Card) -> None:
    """Checks that a model has regions, each with a score of its own.

    Raises:
        ModelError: it has none.
    """
    if not card.regions or card.output.kind == "foreground":
        raise ModelError(
            f"model {card.name!r}: --regions writes a mask for each of several regions that overlap, and the labels of "
            "this model exclude one another; its mask holds them all"
        )
    if card.finishing is not None and card.finishing.decided_first:
        raise ModelError(
            f"model {card.name!r}: --regions needs scores on the scan's grid, and the labels of this model are decided "
            "before they are brought back to it"
        )


def _write(result: Result, path: Path) -> None:
    if result.scores is None:
        raise ModelError("masks of regions need the scores: segment with keep_scores")
    millimetres = float(np.prod(spacing_of(result.volume.affine)))
    masks = region_masks(result.scores, result.card, millimetres)
    write_image(mask_image(np.moveaxis(masks, 0, 3), result.volume), path)


REGIONS = Output(
    "regions",
    ".regions.nii.gz",
    "For a model of overlapping regions: also write a mask of each region, as a 4D file in the order of the labels.",
    _write,
    check_regions,
    needs_scores=True,
)
