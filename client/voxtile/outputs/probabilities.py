"""Probabilities as nnU-Net writes them beside a mask: an .npz with the one array `probabilities`, and a .pkl with the
scan's properties, without which `nnUNetv2_ensemble` takes no .npz."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from voxtile.card import Card
from voxtile.chains.base import PreparedScan
from voxtile.chains.nnunet.prepared_scan import NnunetPreparedScan
from voxtile.errors import ModelError, OutputError
from voxtile.io.atomic import atomic_file, check_writable


def check_nnunet(card: Card) -> None:
    """Raises ModelError for a model that is not nnU-Net's."""
    if card.nnunet is None:
        raise ModelError(
            f"model {card.name!r}: --probabilities writes what nnU-Net writes, and this model is none of nnU-Net's; "
            "use keep_scores of voxtile.Options for its scores"
        )


def check_probabilities(card: Card, path: Path) -> None:
    """Refuse, before any work, a model that is not nnU-Net's (ModelError), and a file that cannot be (OutputError)."""
    check_nnunet(card)
    if path.suffix != ".npz":
        raise OutputError(f"{path}: expected a name that ends in .npz")
    check_writable(path)
    check_writable(path.with_suffix(".pkl"))


def write_probabilities(scores: NDArray[np.float32], case: PreparedScan, path: Path) -> None:
    """Write probabilities [class, i, j, k] of `case` as nnU-Net does: float32 [class, z, y, x], atomically; and before
    them the properties of the scan, under the same name with .pkl.

    Raises OutputError where the file cannot be written, ModelError for a case that is not nnU-Net's.
    """
    if not isinstance(case, NnunetPreparedScan):
        raise ModelError(f"expected a case of an nnU-Net model, found {type(case).__name__}")
    with atomic_file(path.with_suffix(".pkl")) as file:
        pickle.dump(case.properties(), file)
    with atomic_file(path) as file:
        np.savez_compressed(file, probabilities=case.as_read(scores))
