"""What the user says of a scan where its file leaves it open: its axes, its spacing, and values that are no numbers.

Knows nothing of files or models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from voxtile.errors import InputError
from voxtile.io.dicom.choice import ANY_SERIES, SeriesChoice
from voxtile.io.geometry import Triple, check_affine
from voxtile.io.orientation import is_orientation, oriented_affine
from voxtile.io.placed import with_affine
from voxtile.io.stored import Stored

LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Given:
    """What is said of scans beside what their files say.

    Attributes:
        nan: what replaces NaN; None to refuse it.
        posinf: what replaces infinity, and numbers above float32; None to refuse them.
        neginf: what replaces minus infinity, and numbers below float32; None to refuse them.
        orientation: where the axes of a scan run whose file does not say it, such as "LAS"; see
            `voxtile.io.orientation`.
        spacing: millimetres between neighbours along i, j, k of a scan whose file does not say it.
        dicom: which series is meant, and what is done where its slices form no plain grid.

    Raises:
        InputError: a value that no scan could have.
    """

    nan: float | None = None
    posinf: float | None = None
    neginf: float | None = None
    orientation: str | None = None
    spacing: Triple | None = None
    dicom: SeriesChoice = ANY_SERIES

    def __post_init__(self) -> None:
        for name, value in (("nan", self.nan), ("posinf", self.posinf), ("neginf", self.neginf)):
            if value is not None and not (math.isfinite(value) and abs(value) <= LARGEST):
                raise InputError(f"expected a finite number for --{name}, within float32, found {value!r}")
        if self.orientation is not None and not is_orientation(self.orientation):
            raise InputError(
                f"expected three letters for --orientation, one of each of RL, AP and SI, such as LAS, found "
                f"{self.orientation!r}"
            )
        if self.spacing is not None and not (
            len(self.spacing) == 3 and all(math.isfinite(step) and step > 0 for step in self.spacing)
        ):
            raise InputError(f"expected three numbers above 0 for --spacing, in millimetres, found {self.spacing!r}")

    @property
    def in_words(self) -> list[str]:
        """What is said of scans, in words, of what decides which voxels are read and where they lie."""
        said = [f"orientation {self.orientation.upper()}"] if self.orientation else []
        said += [f"spacing {' '.join(f'{step:g}' for step in self.spacing)}"] if self.spacing else []
        return said + self.dicom.in_words

    @property
    def replaces(self) -> bool:
        """Whether values are replaced."""
        return (self.nan, self.posinf, self.neginf) != (None, None, None)


NOTHING_GIVEN = Given()


def completed(stored: Stored, given: Given, name: str) -> Stored:
    """Returns a source whose file leaves something open with what is given for it.

    Raises:
        InputError: it is not given, or is given for a file that says it itself.
    """
    for what, value, example in (
        ("orientation", given.orientation, "LAS"),
        ("spacing", given.spacing, "0.8 0.8 2"),
    ):
        if value is None and what in stored.missing:
            said = "where its axes run (left could be taken for right)" if what == "orientation" else "its spacing"
            raise InputError(
                f"{name}: expected a scan that says {said}, found none in this file; convert it with the program that "
                f"made it to NIfTI, or say it: --{what} {example}"
            )
        if value is not None and what not in stored.missing:
            raise InputError(f"{name}: says its {what} itself; leave out --{what}, which is for files that do not")
    if not stored.missing:
        return stored
    assert stored.affine is not None, "what a NIfTI header leaves open is for its reader"
    spacing = given.spacing or stored.spacing or tuple(np.diag(stored.affine)[:3].tolist())
    affine = stored.affine
    if "orientation" in stored.missing:
        affine = oriented_affine(str(given.orientation), spacing)
    check_affine(affine, name)
    warnings = [f"the file does not say its {what}; --{what} counts" for what in stored.missing]
    header = with_affine(stored.header, affine)
    return replace(stored, affine=affine, header=header, spacing=spacing, warnings=(*stored.warnings, *warnings))
