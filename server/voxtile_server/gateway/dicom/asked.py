"""What a request for DICOM asks for: which objects, encoded how, and the options of the segmentation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from voxtile.asked import TAKEN, value_of
from voxtile.errors import InputError
from voxtile.outputs.dicom.seg import SegKind
from voxtile.outputs.dicom.write import KINDS, Kind, check_kinds

BESIDE: tuple[Kind, ...] = tuple(kind for kind in KINDS if kind != "seg")
"""Objects that are made on request."""

PARAMETERS: list[dict[str, Any]] = [
    {"name": name, "in": "query", "schema": schema}
    for name, schema in (
        ("seg", {"type": "string", "enum": ["binary", "labelmap"], "default": "binary"}),
        *((kind, {"type": "boolean", "default": False}) for kind in BESIDE),
        *((name, {"type": "array", "items": {"type": "string"}} if name == "series" else {}) for name in TAKEN),
    )
]
"""The options, as OpenAPI describes them."""


@dataclass(frozen=True)
class Asked:
    """What is asked for.

    Attributes:
        kinds: the kinds of objects; the SEG is the first.
        seg: how the SEG is encoded.
        options: options of the segmentation, as `voxtile.asked.with_asked` takes them.
    """

    kinds: tuple[Kind, ...] = ("seg",)
    seg: SegKind = "binary"
    options: dict[str, Any] = field(default_factory=dict)


def read_asked(query: Mapping[str, Any]) -> Asked:
    """Reads the options behind a question mark.

    Raises:
        InputError: one is unknown, or has a value that it cannot have.
        MissingExtraError: a package for an object is not installed.
    """
    given = {name.replace("-", "_"): value for name, value in query.items()}
    known = ("seg", *BESIDE, *TAKEN)
    unknown = [name for name in given if name not in known]
    if unknown:
        raise InputError(f"unknown option {unknown[0][:40]!r}; expected one of {', '.join(known)}")
    seg: SegKind = value_of(SegKind, "seg", given.pop("seg", "binary"))
    kinds = [kind for kind in BESIDE if value_of(bool, kind, given.pop(kind, False))]
    check_kinds(["seg", *kinds])
    return Asked(("seg", *kinds), seg, given)
