"""Looks for scans under a folder, and says what it leaves out and why: nothing is left out in silence.

Knows nothing of cases, channels or masks.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from voxtile.batch.record import CLAIM
from voxtile.io.formats.all import PART_SUFFIXES, is_scan
from voxtile.io.formats.base import ends_in
from voxtile.io.formats.pair import header_beside
from voxtile.io.same_file import same_folder

DICOM_NAMES = (".dcm", ".dicom", ".ima")
OTHER_FORMATS = (*DICOM_NAMES, ".mnc", ".gipl", ".gipl.gz", ".rec", ".nii.zip", ".head", ".brik", ".vtk")
"""Endings of files that hold scans and that Voxtile does not read."""

UNFINISHED = (".part", ".partial", ".crdownload", ".filepart", ".tmp")
"""Endings that programs give to a file while they write it."""

DICOM_MARK = slice(128, 132)
"""Where a DICOM file says DICM; such files often have no ending."""


@dataclass(frozen=True)
class LeftOut:
    """Something that the walk has not looked into or not taken.

    Attributes:
        path: where it lies, relative to the folder that was searched.
        reason: why it is left out.
        may_be_scan: whether a scan may have no mask because of it.
        others: how many more there are in the same folder for the same reason.
    """

    path: str
    reason: str
    may_be_scan: bool = True
    others: int = 0

    def __str__(self) -> str:
        return self.reason + (f"; so are {self.others} more in this folder" if self.others else "")


@dataclass
class Walk:
    """What lies under a folder.

    Attributes:
        scans: the files of scans, in the order of their names.
        left_out: everything else that may matter.
    """

    scans: list[Path] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def walk(inputs: Path, outputs: Path) -> Walk:
    """Looks for scans under a folder at any depth.

    Linked files are taken; linked folders are not followed, because they may lead back.

    Args:
        inputs: the folder.
        outputs: a folder that is not searched, whether it lies inside or not.

    Raises:
        OSError: `inputs` itself cannot be read.
    """
    found = Walk()
    seen: set[tuple[int, int]] = set()
    with os.scandir(inputs):  # its own error is the caller's
        pass
    folders = [inputs]
    while folders:
        folder = folders.pop()
        below, left_out = _look_into(folder, inputs, outputs, seen, found.scans)
        folders += reversed(below)
        found.left_out += _counted(left_out)
    found.scans.sort()
    found.left_out.sort(key=lambda one: one.path)
    return found


def _look_into(
    folder: Path, inputs: Path, outputs: Path, seen: set[tuple[int, int]], scans: list[Path]
) -> tuple[list[Path], list[LeftOut]]:
    """Adds a folder's scans to `scans`; returns the folders in it, and what is left out."""
    content = _content(folder, inputs, seen)
    if isinstance(content, LeftOut):
        return [], [content]
    below: list[Path] = []
    left_out: list[LeftOut] = []
    for path in content:
        why = _why_not(path, inputs, outputs)
        if why is None and path.is_dir():
            below += [] if same_folder(path, outputs) else [path]
        elif why is None and is_scan(path):
            scans.append(path)
        elif why is not None:
            left_out.append(LeftOut(_named(path, inputs), *why))
    return below, left_out


def _content(folder: Path, inputs: Path, seen: set[tuple[int, int]]) -> list[Path] | LeftOut:
    """What is in a folder, in the order of names, or why it is not searched."""
    try:
        found = folder.stat()
        names = sorted(os.listdir(folder))
    except OSError as error:
        return LeftOut(_named(folder, inputs), f"a folder that cannot be read ({error.strerror or error})")
    if (found.st_dev, found.st_ino) in seen:
        return LeftOut(_named(folder, inputs), "a folder that was searched under another name", False)
    seen.add((found.st_dev, found.st_ino))
    if folder != inputs and CLAIM in names:
        return LeftOut(_named(folder, inputs), "masks that voxtile batch has written", False)
    if folder != inputs and not names:
        return LeftOut(_named(folder, inputs), "an empty folder", False)
    return [folder / name for name in names]


def _why_not(path: Path, inputs: Path, outputs: Path) -> tuple[str, bool] | None:
    """Why something in a folder is left out, and whether it may be a scan; None for a folder, a scan or no matter."""
    if path.name.startswith("."):
        return ("what an interrupted run has left" if path.name.endswith(".part") else "hidden"), False
    looks_like_scan = is_scan(path) or path.name.lower().endswith((*OTHER_FORMATS, *PART_SUFFIXES))
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if not path.is_symlink():
            return f"cannot be looked at ({error.strerror or error})", True
        return "a link that leads nowhere", looks_like_scan or not path.suffix
    if stat.S_ISDIR(mode):
        if path.is_symlink() and not same_folder(path, outputs):
            return "a linked folder, which is not followed", not _inside(path, inputs)
        return None
    if not stat.S_ISREG(mode):
        return ("no file but a pipe, a socket or a device", True) if looks_like_scan else None
    return _other_file(path)


def _other_file(path: Path) -> tuple[str, bool] | None:
    """Why a file is left out; None for a scan, and for what is plainly none."""
    name = path.name.lower()
    if is_scan(path):
        return None
    if ends_in(name, PART_SUFFIXES):
        return None if header_beside(path) else ("voxels without their header, which lies in a .hdr file", True)
    if name.endswith(DICOM_NAMES) or _is_dicom(path):
        return "DICOM; segment its series with voxtile dicom, or convert it to NIfTI", True
    if name.endswith(OTHER_FORMATS):
        return "a format that is not read; convert it to NIfTI", True
    if name.endswith(UNFINISHED) and is_scan(Path(name.rpartition(".")[0])):
        return "a scan that is not copied to its end", True
    return None


def _is_dicom(path: Path) -> bool:
    """Whether a file without an ending, or with a number for one, says that it is DICOM's."""
    if path.suffix and not path.suffix[1:].isdigit():
        return False
    try:
        with path.open("rb") as file:
            return file.read(DICOM_MARK.stop)[DICOM_MARK] == b"DICM"
    except OSError:
        return False


def _inside(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _named(path: Path, inputs: Path) -> str:
    return str(path.relative_to(inputs))


def _counted(left_out: Sequence[LeftOut]) -> Iterator[LeftOut]:
    """Those of one folder: one for each reason, so that a series of a thousand files is one line."""
    for _, group in groupby(sorted(left_out, key=lambda one: (one.reason, one.may_be_scan)), lambda one: one.reason):
        first, *others = group
        worst = any(one.may_be_scan for one in (first, *others))
        yield LeftOut(first.path, first.reason, worst, len(others))
