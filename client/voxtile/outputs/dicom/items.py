"""Makes the items of DICOM's sequences that all objects share: codes, and references to frames and objects."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from voxtile.card import Code
from voxtile.outputs.dicom.codes import SIDES
from voxtile.outputs.dicom.frames import Reference, stand_in


def code_item(value: str, scheme: str, meaning: str) -> Any:
    """An item of a sequence of codes."""
    from pydicom.dataset import Dataset

    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def concept(value: str, meaning: str, scheme: str = "SCT") -> Any:
    """A code as highdicom takes it."""
    import highdicom as hd

    return hd.sr.CodedConcept(value, scheme, meaning)


def add_side(item: Any, code: Code) -> None:
    """Adds the side of a structure to the item of its type."""
    if code.laterality is not None:
        value, meaning = SIDES[code.laterality]
        item.SegmentedPropertyTypeModifierCodeSequence = [code_item(value, "SCT", meaning)]


def refer_to_frames(items: Iterable[Any], references: Iterable[Reference]) -> None:
    """Replaces the stand-ins in items that name an object by the frames that they stand for."""
    real = {stand_in(number): reference for number, reference in enumerate(references, 1)}
    for item in items:
        reference = real.get(str(item.ReferencedSOPInstanceUID))
        if reference is not None:
            name_reference(item, reference)


def name_reference(item: Any, reference: Reference) -> Any:
    """Makes an item name a frame, or an object; returns it."""
    item.ReferencedSOPClassUID = reference.sop_class
    item.ReferencedSOPInstanceUID = reference.sop_instance
    if reference.frame is not None:
        item.ReferencedFrameNumber = reference.frame
    return item


def object_items(references: Iterable[Reference]) -> list[Any]:
    """An item for each object."""
    from pydicom.dataset import Dataset

    return [name_reference(Dataset(), reference) for reference in references]
