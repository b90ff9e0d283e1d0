"""Refuses pictures in which Siemens scanners store all slices of a volume beside each other ("mosaics").

Their position and size are those of the picture, not of a slice, so a mosaic would be taken for one large slice. Knows
nothing of how other slices are stored.
"""

from __future__ import annotations

from typing import Any

from voxtile.errors import InputError
from voxtile.io.dicom.objects.headers import tag_of, text_of

MOSAIC = "MOSAIC"

HEADER_BLOCK = (0x0029, 0x0010)
"""Where the scanner's own header is kept."""

COUNT_GROUP, COUNT_CREATOR, COUNT_ELEMENT = 0x0019, "SIEMENS MR HEADER", 0x0A
"""Where the scanner says once more of how many slices a picture is."""


def check_no_mosaic(dataset: Any, name: str) -> None:
    """Checks that an object is no mosaic.

    Raises:
        InputError: it is one, by its `ImageType` or by what the scanner says in tags of its own.
    """
    said = MOSAIC in text_of(dataset, "ImageType").upper().split("\\")
    if said or _count_in_header(dataset) > 1 or _count_in_tag(dataset) > 1:
        raise InputError(
            f"{name}: expected one slice a picture, found a Siemens mosaic of many ({tag_of('ImageType')}); convert "
            "the series to NIfTI with dcm2niix, or choose another series"
        )


def _count_in_header(dataset: Any) -> int:
    """How many slices the scanner's own header says; 0 where it says nothing, or cannot be read."""
    if HEADER_BLOCK not in dataset:
        return 0
    from nibabel.nicom.csareader import get_csa_header, get_n_mosaic

    try:
        header = get_csa_header(dataset)
        return int(get_n_mosaic(header) or 0) if header else 0
    except Exception:  # whatever it meets in a header that an anonymiser changed
        return 0


def _count_in_tag(dataset: Any) -> int:
    if (COUNT_GROUP, 0x0010) not in dataset:
        return 0
    try:
        value = dataset.private_block(COUNT_GROUP, COUNT_CREATOR)[COUNT_ELEMENT].value
        return int.from_bytes(value[:2], "little") if isinstance(value, bytes) else int(value)
    except Exception:  # it is not there, or holds no number
        return 0
