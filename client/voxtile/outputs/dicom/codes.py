"""Says what a structure is in codes of SNOMED CT: by the code that its label has, else by its name.

`structures.csv` lists the usual names: those of TotalSegmentator, of nnU-Net's data sets and of MONAI's bundles. Its
codes are those of DICOM PS3.16; those that DICOM does not list itself come from TotalSegmentator's mapping to SNOMED
CT (Apache-2.0). Knows nothing of files or scans.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib.resources import files
from types import MappingProxyType

from voxtile.card import Code, Label, Laterality

GENERIC = Code(value="85756007", meaning="Tissue", category="tissue")
"""For a structure whose name says nothing: what DICOM's viewers take for anything."""

CATEGORIES = MappingProxyType(
    {
        "anatomy": ("91723000", "Anatomical Structure"),
        "tissue": ("85756007", "Tissue"),
        "substance": ("91720002", "Body Substance"),
        "lesion": ("49755003", "Morphologically Abnormal Structure"),
        "object": ("260787004", "Physical object"),
    }
)
"""SNOMED CT's code and meaning of each category of structures (DICOM's context group 7150)."""

SIDES = MappingProxyType({"left": ("7771000", "Left"), "right": ("24028007", "Right")})
"""SNOMED CT's code and meaning of each side (DICOM's context group 244)."""

ABBREVIATED = MappingProxyType({"l": "left", "r": "right"})
"""Sides as radiotherapy writes them at the end of a name: Kidney_L."""

PAIRED = "pair"
"""In the table: the structure is on both sides, and its code takes a side as modifier."""

Key = tuple[str, Laterality | None]


def code_of(labels: Iterable[Label]) -> Code | None:
    """The code of the structure that one or several labels of the same value are; None where nothing is known of it."""
    found = {label.code or code_of_name(label.name) for label in labels}
    return found.pop() if len(found) == 1 else None


def code_of_name(name: str) -> Code | None:
    """The code of a usual name, such as "kidney_left" or "Left kidney"; None for any other name.

    A side counts only where the structure has sides. A name with both sides has no code.
    """
    table, (base, side) = _table(), _split(name)
    if side is None:
        return table.get((base, None), (None, False))[0] if name else None
    if (base, side) in table:
        return table[base, side][0]
    code, paired = table.get((base, None), (None, False))
    return code.model_copy(update={"laterality": side}) if code is not None and paired else None


def _split(name: str) -> Key:
    """The words of a name without the side, and the side."""
    words = re.findall(r"[a-z0-9]+", name.lower())
    if len(words) > 1 and words[-1] in ABBREVIATED:
        words[-1] = ABBREVIATED[words[-1]]
    sides = [word for word in words if word in SIDES]
    if len(sides) != 1:
        return " ".join(words), None
    side: Laterality = "left" if sides[0] == "left" else "right"
    return " ".join(word for word in words if word != side), side


@lru_cache(maxsize=1)
def _table() -> Mapping[Key, tuple[Code, bool]]:
    """By name and side: the code, and whether it takes a side."""
    text = (files(__package__) / "structures.csv").read_text(encoding="utf-8")
    result: dict[Key, tuple[Code, bool]] = {}
    for row in csv.DictReader(text.splitlines()):
        side: Laterality | None = "left" if row["side"] == "left" else "right" if row["side"] == "right" else None
        code = Code.model_validate({"value": row["code"], "meaning": row["meaning"], "category": row["category"]})
        for name in row["names"].split("|"):
            result[name, side] = code, row["side"] == PAIRED
    return MappingProxyType(result)
