"""Reads BIDS names, such as sub-01_ses-02_T1w.nii.gz, and compares their suffixes with the names of a model's channels.

Knows nothing of what is in a file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from voxtile.errors import InputError
from voxtile.io.channel_numbers import split_number
from voxtile.io.formats.all import stem_of

NAME = re.compile(r"(sub-[A-Za-z0-9+]+(?:_[A-Za-z]+-[A-Za-z0-9+]+)*)_([A-Za-z][A-Za-z0-9]*)", re.ASCII)
"""Entities, the subject first, and the suffix."""

SAME = {"t1ce": "t1c", "t1gd": "t1c", "t1post": "t1c", "t1n": "t1", "t2flair": "flair", "t2f": "flair"}
"""Other names of the same contrast, in small letters and without the w of BIDS."""

CONTRAST_AGENT = "ce-"
"""The entity of a scan with a contrast agent; BIDS has no suffix for it."""


@dataclass(frozen=True)
class BidsName:
    """What the name of a file says.

    Attributes:
        file: the file.
        entities: such as sub-01 and ses-02, in their order; without that of a contrast agent.
        contrast: what is seen, in the form of `contrast_of`.
    """

    file: Path
    entities: tuple[str, ...]
    contrast: str


def contrast_of(name: str) -> str:
    """A suffix or a channel's name in the form in which the two are compared: T1w, T1 and "T1-weighted" are t1."""
    found = re.sub(r"(weighted|w)$", "", re.sub(r"[^a-z0-9]", "", name.lower()))
    return SAME.get(found, found)


def bids_name(file: Path) -> BidsName | None:
    """What a file's name says; None where it is no BIDS name. nnU-Net's number of a channel is no suffix."""
    name = NAME.fullmatch(stem_of(file))
    if name is None or split_number(file)[1] is not None:
        return None
    entities = tuple(name[1].split("_"))
    others = tuple(entity for entity in entities if not entity.startswith(CONTRAST_AGENT))
    return BidsName(file, others, contrast_of(name[2]) + ("c" if others != entities else ""))


def check_suffixes_as_given(files: Sequence[Path], channels: Sequence[str]) -> None:
    """Checks the files of one scan in the order in which they are given; other names than BIDS's may be anything.

    Raises:
        InputError: their suffixes are the model's channels in another order.
    """
    found = [name.contrast for name in map(bids_name, files) if name is not None]
    wanted = [contrast_of(channel) for channel in channels]
    if found != wanted and sorted(found) == sorted(wanted):
        raise InputError(
            f"expected the channels in the model's order ({', '.join(channels)}), found "
            f"{', '.join(file.name for file in files)}; give them in this order"
        )
