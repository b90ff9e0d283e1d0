"""Prepares a scan for a model with the pre-processing that the model's card names: MONAI's or nnU-Net's."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from voxtile.card import Card
from voxtile.chains.base import PreparedScan
from voxtile.chains.monai.prepared_scan import MonaiPreparedScan
from voxtile.extras import require
from voxtile.io.geometry import MONAI, NIBABEL, SIMPLEITK
from voxtile.io.volume import Volume
from voxtile.transforms.finishing import CLEANING


def check_installed(card: Card) -> None:
    """Checks, before any work, that what the model's pre-processing needs is installed.

    Raises:
        MissingExtraError: an optional dependency is missing.
    """
    if card.nnunet is not None or card.parts is not None:
        require("scipy", "nnunet", f"the nnU-Net model {card.name!r}")
    if card.finishing is not None and card.finishing.cleans:
        require("scipy", "nnunet", f"the model {card.name!r}, whose labels are cleaned,")


def reader_of(card: Card) -> str:
    """Returns the name of the reader that the model was trained with, whose rule says which header fields count."""
    if card.parts is not None:
        return NIBABEL  # as TotalSegmentator reads
    if card.nnunet is None:
        return MONAI
    return str(card.nnunet.get("image_reader_writer") or SIMPLEITK)


def prepare_scan(
    volume: Volume,
    card: Card,
    previous: NDArray[Any] | None = None,
    postprocessing: bool = True,
    max_bytes: int | None = None,
) -> PreparedScan:
    """Returns `volume` prepared as `card` says.

    Args:
        volume: the scan.
        card: the model's card.
        previous: labels [i, j, k] of a cascade's first stage, for a model that is the second stage.
        postprocessing: whether labels are cleaned after they are decided: by an nnU-Net model's learned
            post-processing, or by the steps of a chain.
        max_bytes: limit for what preparing takes; None for the machine's own memory.

    Raises:
        MissingExtraError: an optional dependency is missing.
        InputError: the scan does not fit the model.
        ModelError: the card asks for something that this client does not reproduce.
        MemoryLimitError: the scan on the model's grid needs more than `max_bytes`.
    """
    check_installed(card)
    if card.nnunet is None:
        return MonaiPreparedScan(volume, card if postprocessing else _without_cleaning(card), max_bytes)
    # Loaded only for such a model: the others need nothing of it.
    from voxtile.chains.nnunet.prepared_scan import NnunetPreparedScan

    return NnunetPreparedScan(volume, card, previous, postprocessing, max_bytes)


def _without_cleaning(card: Card) -> Card:
    """The card without the steps of its chain that change decided labels."""
    if card.postprocessing is None:
        return card
    kept = tuple(step for step in card.postprocessing if not isinstance(step, CLEANING))
    return card.model_copy(update={"postprocessing": kept})
