"""Lists the file formats that scans are read from. A new one is a module of this package and its line here.

Knows nothing of how a format is read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from voxtile.io.nifti import read_nifti
from voxtile.io.stored import Admit, Stored


@dataclass(frozen=True)
class FileFormat:
    """A format of files that hold a scan.

    Attributes:
        name: what messages call it.
        suffixes: how the names of its files end, the longest first.
        read: reads a file. It calls the function that it is given with what the file's header claims, before it reads
            or allocates a voxel. Raises InputError, in one line, for whatever is no scan of this format.
    """

    name: str
    suffixes: tuple[str, ...]
    read: Callable[[Path, Admit], Stored]


NIFTI = FileFormat("NIfTI", (".nii.gz", ".nii"), read_nifti)
FORMATS: tuple[FileFormat, ...] = (NIFTI,)

SUFFIXES: tuple[str, ...] = tuple(suffix for one in FORMATS for suffix in one.suffixes)
"""The endings of all files that a scan can be read from."""


def read_file(path: Path, admit: Admit) -> Stored:
    """Reads a scan's file; one with no known ending is taken for NIfTI, whose reader says what it is not.

    Raises:
        InputError: it is no scan of its format.
    """
    name = path.name.lower()
    return next((one for one in FORMATS if name.endswith(one.suffixes)), NIFTI).read(path, admit)


def is_scan(path: Path) -> bool:
    """Whether the name of a file ends as a scan's does, in capitals or not."""
    return path.name.lower().endswith(SUFFIXES)


def stem_of(path: Path) -> str:
    """The name of a scan's file without its ending."""
    ending = next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), "")
    return path.name[: len(path.name) - len(ending)]
