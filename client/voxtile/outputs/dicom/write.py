"""Writes the DICOM objects that are asked for about one segmentation, each whole or not at all, the SEG first.

Knows nothing of commands.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from voxtile.errors import OutputError
from voxtile.io.atomic import atomic_file
from voxtile.outputs.dicom.capture import capture_of, check_picture_installed
from voxtile.outputs.dicom.contours import structure_set_of
from voxtile.outputs.dicom.finding import Finding
from voxtile.outputs.dicom.measurements import report_of
from voxtile.outputs.dicom.provenance import KINDS as KINDS
from voxtile.outputs.dicom.provenance import Kind as Kind
from voxtile.outputs.dicom.seg import SegKind, check_installed, seg_of
from voxtile.outputs.dicom.texts import quietly

SUFFIX = ".dcm"


def check_kinds(kinds: Collection[Kind]) -> None:
    """Checks, before any work, that the packages for these kinds of objects are there.

    Raises:
        MissingExtraError: one is not.
    """
    check_installed()
    if "sc" in kinds:
        check_picture_installed()


def write_objects(finding: Finding, files: Mapping[Kind, Path], seg_kind: SegKind = "binary") -> list[str]:
    """Writes objects about a segmentation.

    Args:
        finding: the segmentation.
        files: for each kind that is wanted its file; the SEG among them.
        seg_kind: how the SEG is encoded.

    Returns:
        What those that could not be written said; none of them costs another, but for the SEG.

    Raises:
        OutputError: the SEG could not be made or written.
    """
    seg = seg_of(finding, seg_kind)
    write_object(seg, files["seg"])
    makers: dict[Kind, Callable[[], Any]] = {
        "sr": lambda: report_of(finding, seg),
        "sc": lambda: capture_of(finding),
        "rtstruct": lambda: structure_set_of(finding),
    }
    failures = []
    for kind, make in makers.items():
        if kind in files:
            try:
                write_object(make(), files[kind])
            except OutputError as error:
                failures.append(str(error))
            except MemoryError:
                failures.append(f"{files[kind]}: the memory was not enough")
    return failures


def write_object(dataset: Any, path: Path) -> None:
    """Writes one object atomically.

    Raises:
        OutputError: it cannot be written.
    """
    with atomic_file(path) as file, quietly(f"{path.name}"):
        dataset.save_as(file, enforce_file_format=True)
