"""Writes probabilities as nnU-Net does beside a mask: an .npz file, and a .pkl file with the properties of the scan.

`nnUNetv2_ensemble` takes no .npz file without its .pkl file.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from voxtile.card import Card
from voxtile.chains.base import PreparedScan
from voxtile.chains.nnunet.prepared_scan import NnunetPreparedScan
from voxtile.errors import ModelError
from voxtile.io.atomic import atomic_file
from voxtile.outputs.base import Output, Result


def check_nnunet(card: Card) -> None:
    """Checks that a model is nnU-Net's.

    Raises:
        ModelError: it is not.
    """
    if card.nnunet is None:
        raise ModelError(
            f"model {card.name!r}: --probabilities writes what nnU-Net writes, and this is not an nnU-Net model; use "
            "keep_scores of voxtile.Options for its scores"
        )


def write_probabilities(scores: NDArray[np.float32], prepared: PreparedScan | None, path: Path) -> None:
    """Writes probabilities as nnU-Net does, and before them the properties of the scan; each file appears whole.

    Args:
        scores: [class, i, j, k] the probabilities on the scan's own grid; they are written as float32 [class, z, y, x].
        prepared: the scan, prepared for an nnU-Net model.
        path: the .npz file; the properties have the same name with .pkl.

    Raises:
        OutputError: A file cannot be written.
        ModelError: the scan was prepared for a model that is not nnU-Net's.
    """
    if not isinstance(prepared, NnunetPreparedScan):
        raise ModelError(f"expected a scan prepared for an nnU-Net model, found {type(prepared).__name__}")
    with atomic_file(path.with_suffix(".pkl")) as file:
        pickle.dump(prepared.properties(), file)
    with atomic_file(path) as file:
        np.savez_compressed(file, probabilities=prepared.as_read(scores))


def _write(result: Result, path: Path) -> None:
    if result.scores is None:
        raise ModelError("probabilities need the scores: segment with keep_scores")
    write_probabilities(result.scores, result.prepared, path)


PROBABILITIES = Output(
    "probabilities",
    ".npz",
    "For an nnU-Net model: also write the probabilities as nnU-Net does.",
    _write,
    check_nnunet,
    needs_scores=True,
    companions=(".pkl",),
)
