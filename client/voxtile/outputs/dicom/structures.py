"""Lists the structures of a mask as DICOM counts them: numbers from 1 on, each with its code and colour.

Knows nothing of scans or of DICOM's objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.card import Card, Code, Label
from voxtile.errors import OutputError
from voxtile.outputs.dicom.codes import GENERIC, code_of
from voxtile.outputs.palette import palette_of

MOST_NAMES = 5
"""Names or values in a message, at most."""

UNKNOWN = 65535
"""Number of a value that no structure has; a mask of 65535 structures besides the background has none left for it."""


@dataclass(frozen=True)
class Structure:
    """One structure of a mask.

    Attributes:
        number: its number in DICOM, from 1 on in the order of the values.
        value: its value in the mask.
        name: what the model calls it.
        code: what it is.
        known: whether the code says more than that it is something.
        rgb: its colour, 0 to 255; the same as in the preview.
    """

    number: int
    value: int
    name: str
    code: Code
    known: bool
    rgb: tuple[int, int, int]


def structures_of(card: Card) -> tuple[Structure, ...]:
    """The structures of a model's masks, by their values. Labels of one value are one structure; 0 is background.

    Raises:
        OutputError: there is none.
    """
    shown = [label for label in card.labels if label.value != 0]
    palette = palette_of(card.labels)
    by_value: dict[int, list[Label]] = {}
    for label in shown:
        by_value.setdefault(label.value, []).append(label)
    if not by_value:
        raise OutputError(f"model {card.name!r}: expected a label other than background, found none; DICOM needs one")
    return tuple(
        _structure(number, value, by_value[value], palette[value]) for number, value in enumerate(sorted(by_value), 1)
    )


def numbered(labels: NDArray[Any], structures: Sequence[Structure]) -> NDArray[Any]:
    """Returns labels [i, j, k] as DICOM's numbers, uint8 or uint16; background stays 0.

    Raises:
        OutputError: there is a value that no structure has.
    """
    most = int(labels.max(initial=0))
    of_value = {0: 0, **{structure.value: structure.number for structure in structures}}
    numbers = np.full(max(most, *of_value) + 1, UNKNOWN, np.uint16)
    numbers[list(of_value)] = list(of_value.values())
    dtype = np.uint8 if len(structures) < 256 else np.uint16
    result = np.empty(labels.shape, dtype, order="F")
    for k in range(labels.shape[2]):  # plane by plane: an index of a whole scan would take eight bytes a voxel
        plane = numbers[labels[:, :, k]]
        if (plane == UNKNOWN).any():
            strange = np.setdiff1d(labels[:, :, k], list(of_value))[:MOST_NAMES].tolist()
            raise OutputError(f"expected labels of {sorted(of_value)} in the mask, found {strange}")
        result[:, :, k] = plane
    return result


def unknown_in_words(structures: Sequence[Structure]) -> list[str]:
    """One sentence about the structures whose name says nothing; none where there is none."""
    names = [structure.name for structure in structures if not structure.known]
    if not names:
        return []
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return [
        f"no code is known for {', '.join(names[:MOST_NAMES])}{more}: written as {GENERIC.meaning} "
        f"({GENERIC.scheme} {GENERIC.value}); give these labels a code in the model's spec"
    ]


def _structure(number: int, value: int, labels: Sequence[Label], colour: tuple[float, float, float]) -> Structure:
    code, (red, green, blue) = code_of(labels), (round(255 * part) for part in colour)
    name = " + ".join(label.name for label in labels)
    return Structure(number, value, name, code or GENERIC, code is not None, (red, green, blue))
