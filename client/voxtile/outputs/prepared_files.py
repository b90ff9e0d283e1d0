"""Writes a scan as an nnU-Net network sees it to files, on which `voxtile-build` calibrates and certifies engines.

The build side knows nothing of nnU-Net's preprocessing and the client nothing of engines, so these files pass between
them. The description in their header names the preparation, a checksum of the plan that the card holds, so that the
build side refuses a raw scan and one prepared by another plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from voxtile.card import Card
from voxtile.chains.base import PreparedScan
from voxtile.chains.nnunet.prepared_scan import NnunetPreparedScan
from voxtile.errors import ModelError
from voxtile.io.atomic import check_writable
from voxtile.io.stored import PREPARED_MARK
from voxtile.io.writing import NIFTI_SUFFIXES, check_nifti_name, write_images

DIGITS = 32
"""Digits of the checksum that are written: a NIfTI header's description holds 79 characters."""


def preparation_of(card: Card) -> str:
    """Returns the checksum of the card's plan.

    Raises:
        ModelError: voxtile-build takes no prepared scans for this model.
    """
    if card.parts:
        raise ModelError(
            f"model {card.name!r} is a set of models, each of which prepares scans by itself; give one of them: "
            f"{', '.join(part.model for part in card.parts.models)}"
        )
    if card.nnunet is None:
        raise ModelError(
            f"model {card.name!r}: expected an nnU-Net model; voxtile-build prepares scans for any other by itself: "
            "name them in the spec as they are"
        )
    if card.previous_stage:
        raise ModelError(
            f"model {card.name!r}: expected a model of one stage, found a cascade's second stage, which voxtile-build "
            "certifies on a generated volume: there is nothing to prepare"
        )
    found = card.nnunet.get("preparation")
    if not isinstance(found, str):
        raise ModelError(f"model {card.name!r}: its card does not name its preparation; build it anew")
    return found


def check_prepared_files(card: Card, path: Path) -> None:
    """Checks, before any work, that a prepared scan for the model of `card` can be written to `path`.

    Raises:
        ModelError: voxtile-build takes no prepared scans for this model.
        OutputError: the name is not a NIfTI file's, or the place cannot be written to.
    """
    preparation_of(card)
    for file in files_of(path, len(card.channels)):
        check_writable(file)


def write_prepared_scan(prepared: PreparedScan | None, card: Card, path: Path) -> list[Path]:
    """Writes a scan that was prepared for the nnU-Net model of `card`.

    Returns:
        The files, one for each channel: `path` itself, or names made of it (see `files_of`).

    Raises:
        ModelError: the model is not nnU-Net's, or voxtile-build takes no prepared scans for it.
        OutputError: a file cannot be written.
    """
    preparation = preparation_of(card)
    if not isinstance(prepared, NnunetPreparedScan):
        raise ModelError(f"expected a scan prepared for an nnU-Net model, found {type(prepared).__name__}")
    return write_prepared(prepared.data, prepared.spacing, preparation, path)


def files_of(path: str | Path, channels: int) -> list[Path]:
    """Returns the files for `channels` channels: `path` itself for one, else CASE_0000.nii.gz, … as nnU-Net names them.

    Raises:
        OutputError: `path` is not the name of a NIfTI file.
    """
    check_nifti_name(path)
    path = Path(path)
    if channels == 1:
        return [path]
    ending = next(suffix for suffix in sorted(NIFTI_SUFFIXES, key=len, reverse=True) if path.name.endswith(suffix))
    stem = path.name.removesuffix(ending)
    return [path.with_name(f"{stem}_{channel:04d}{ending}") for channel in range(channels)]


def write_prepared(
    data: NDArray[np.float32], spacing: Sequence[float], preparation: str, path: str | Path
) -> list[Path]:
    """Writes an array as a prepared scan; in a file its axes have the reverse order, as those of a scan have.

    Args:
        data: [channel, *plan's axes].
        spacing: millimetres along the plan's axes.
        preparation: the checksum of the plan.
        path: see `files_of`.

    Returns:
        The files, one for each channel.

    Raises:
        OutputError: a file cannot be written.
    """
    from nibabel.nifti1 import Nifti1Image

    def image(channel: NDArray[np.float32]) -> Nifti1Image:
        made = Nifti1Image(channel.astype(np.float32, copy=False).T, np.diag([*spacing[::-1], 1.0]))
        made.header["descrip"] = f"{PREPARED_MARK}{preparation[:DIGITS]}"
        return made

    files = files_of(path, len(data))
    write_images(zip(map(image, data), files, strict=True))
    return files
