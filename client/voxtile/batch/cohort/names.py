"""Says which names of cases and of masks cannot be: what a manifest asks for must be possible in a folder.

Knows nothing of tables.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from voxtile.batch.cases import MASK_SUFFIX, CaseFiles
from voxtile.batch.record import CLAIM, RECORDS
from voxtile.errors import InputError
from voxtile.outputs.base import Output

NAME_BYTES, PATH_BYTES = 255, 4095
"""The longest names of a file alone, and with its folders, that Linux's file systems have."""

ENDS_LINES = ("Cc", "Zl", "Zp")
"""Kinds of characters that end a line, or say something to a terminal."""


def check_name(name: str) -> None:
    """Raises InputError for what cannot be the name of a case."""
    if not name.strip():
        raise InputError("expected the name of a case, found an empty cell")
    _check_line(name)
    if name.startswith("/") or any(part in ("", ".", "..") for part in name.split("/")):
        raise InputError(
            f"expected the name of a case, by which its mask in the folder for masks is named, found {name!r}; "
            "leave out / at its ends, // and .."
        )
    if any(part.startswith(".") for part in name.split("/")) or name == CLAIM:
        raise InputError(f"expected the name of a case that is not hidden by a dot, found {name!r}; rename it")


def checked_output(output: str) -> str:
    """The name of a mask, as a manifest has it. Raises InputError for what can be none."""
    _check_line(output)
    parts = output.split("/")
    if output.startswith("/") or ".." in parts:
        raise InputError(
            f"expected an output in the folder for masks, relative to it, found {output!r}; leave out .. and / in front"
        )
    if any(part.startswith(".") and part != "." for part in parts) or RECORDS in parts:
        raise InputError(f"expected an output that is not hidden by a dot, found {output!r}; rename it")
    if not output.endswith(MASK_SUFFIX) or parts[-1] == MASK_SUFFIX:
        raise InputError(f"expected an output whose name ends in {MASK_SUFFIX}, found {output!r}; name it so")
    return output


def impossible(cases: Sequence[tuple[int, CaseFiles]], place: Path, beside: Sequence[Output]) -> dict[int, InputError]:
    """The rows of which a file would have a name that is too long, or that another row needs for a folder.

    Args:
        cases: the cases, each with the number of its row.
        place: the folder for masks.
        beside: what else is written for each case.
    """
    files = {number: [*case.targets(beside).values(), place / RECORDS / f"{case.name}.json"] for number, case in cases}
    folders = {folder: number for number, paths in files.items() for path in paths for folder in _folders(path, place)}
    faults: dict[int, InputError] = {}
    for number, paths in files.items():
        for path in paths:
            if len(os.fsencode(path.name)) > NAME_BYTES or len(os.fsencode(path)) > PATH_BYTES:
                wanted = f"expected names of at most {NAME_BYTES} bytes, and {PATH_BYTES} with their folders"
                faults[number] = InputError(f"{wanted}, found {path.name!r}; name it shorter")
            elif path in folders:
                faults[number] = InputError(
                    f"{path}: expected a name for a file, found that of a folder of row {folders[path]}; rename one"
                )
    return faults


def _folders(path: Path, place: Path) -> Iterator[Path]:
    """The folders of a file below the place."""
    for folder in path.parents:
        if folder == place:
            return
        yield folder


def _check_line(name: str) -> None:
    if any(unicodedata.category(letter) in ENDS_LINES for letter in name):
        raise InputError(f"expected a name in one line, found {name!r}; is a quote open?")
