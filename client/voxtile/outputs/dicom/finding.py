"""Gathers what DICOM's objects about one segmentation are made from. Knows nothing of the objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from voxtile.card import Card
from voxtile.errors import InputError
from voxtile.io.dicom.source import Source
from voxtile.io.volume import Volume
from voxtile.outputs.dicom.frames import Frames, frames_of
from voxtile.outputs.dicom.identity import Identity, identity_of
from voxtile.outputs.dicom.structures import Structure, numbered, structures_of, unknown_in_words
from voxtile.outputs.passport import Passport


@dataclass(frozen=True, eq=False)
class Finding:
    """One segmentation, as DICOM's objects are made from it.

    Attributes:
        volume: the scan.
        labels: [i, j, k] the mask on the scan's grid.
        numbers: [i, j, frame] the numbers of the structures, on the frames that the scan was read from.
        frames: these frames.
        structures: the structures, by number.
        card: the model's card.
        passport: what made the mask.
        identity: the identifiers of what is written.
    """

    volume: Volume
    labels: NDArray[Any]
    numbers: NDArray[Any]
    frames: Frames
    structures: tuple[Structure, ...]
    card: Card
    passport: Passport
    identity: Identity

    @property
    def warnings(self) -> tuple[str, ...]:
        """What of the result is less than it could be, and why, in words."""
        return (*self.frames.warnings, *unknown_in_words(self.structures))


def source_of(volume: Volume) -> Source:
    """The objects that a scan was read from.

    Raises:
        InputError: it was not read from DICOM.
    """
    if not isinstance(volume.native, Source):
        raise InputError(
            f"{volume.names[0]}: expected DICOM, found another format; DICOM objects can only be written about "
            "DICOM. Use voxtile segment"
        )
    return volume.native


def finding_of(volume: Volume, labels: NDArray[Any], card: Card, passport: Passport) -> Finding:
    """Gathers a segmentation.

    Args:
        volume: the scan, which was read from DICOM.
        labels: [i, j, k] the mask.
        card: the model's card.
        passport: what made the mask.

    Raises:
        InputError: the scan was not read from DICOM.
        OutputError: the headers do not say where its frames lie, or the mask has a value that the model has not.
    """
    source = source_of(volume)
    structures = structures_of(card)
    frames = frames_of(source, passport.scan_sha256)
    numbers = numbered(source.on_frames(labels), structures)
    identity = identity_of(passport, frames.uids)
    passport = passport.model_copy(update={"mask_sha256": ""})  # numbers and frames are DICOM's own
    return Finding(volume, labels, numbers, frames, structures, card, passport, identity)
