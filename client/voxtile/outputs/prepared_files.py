"""A scan as an nnU-Net network sees it, in files: what `voxtile-build` calibrates and certifies engines on.

The build side knows nothing of nnU-Net's preprocessing, and the client nothing of engines; these files are between
them. Their header's description names the preparation, a checksum of the plan that the card holds, so that a raw scan
or one prepared by another plan is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from voxtile.card import Card
from voxtile.chains.nnunet.prepared_scan import NnunetPreparedScan
from voxtile.errors import ModelError
from voxtile.io.images import SUFFIXES, check_mask_name, check_writable, write_images
from voxtile.segmenter import Segmenter

MARK = "voxtile prepared "
DIGITS = 32
"""Of the checksum: a NIfTI header's description holds 79 characters."""


def preparation_of(card: Card) -> str:
    """The checksum of the card's plan. Raises ModelError where voxtile-build takes no prepared scans for the model."""
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


def write_prepared_scan(segmenter: Segmenter, scans: Sequence[Path], path: Path) -> list[Path]:
    """Prepares a scan for the segmenter's nnU-Net model and writes it to `path`; the files, one a channel.

    Raises a VoxtileError: a model that is not nnU-Net's, a scan that does not fit, a place that cannot be written.
    """
    preparation = preparation_of(segmenter.card)
    for file in files_of(path, len(segmenter.card.channels)):
        check_writable(file)
    case = segmenter.load(scans).case
    assert isinstance(case, NnunetPreparedScan)
    return write_prepared(case.data, case.spacing, preparation, path)


def files_of(path: str | Path, channels: int) -> list[Path]:
    """The files that stand for `path`: itself, or CASE_0000.nii.gz, … as nnU-Net calls those of several channels.

    Raises OutputError for a name that is not a NIfTI file's.
    """
    check_mask_name(path)
    path = Path(path)
    if channels == 1:
        return [path]
    ending = next(suffix for suffix in sorted(SUFFIXES, key=len, reverse=True) if path.name.endswith(suffix))
    stem = path.name.removesuffix(ending)
    return [path.with_name(f"{stem}_{channel:04d}{ending}") for channel in range(channels)]


def write_prepared(
    data: NDArray[np.float32], spacing: Sequence[float], preparation: str, path: str | Path
) -> list[Path]:
    """Writes `data` [channel, *plan's axes] with `spacing` (mm, in the same order); the files, one a channel.

    Axes lie in a file the other way round, as those of a scan do. Raises OutputError.
    """
    from nibabel.nifti1 import Nifti1Image

    def image(channel: NDArray[np.float32]) -> Nifti1Image:
        made = Nifti1Image(channel.astype(np.float32, copy=False).T, np.diag([*spacing[::-1], 1.0]))
        made.header["descrip"] = f"{MARK}{preparation[:DIGITS]}"
        return made

    files = files_of(path, len(data))
    write_images(zip(map(image, data), files, strict=True))
    return files
