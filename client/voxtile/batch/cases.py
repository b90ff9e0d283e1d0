"""Finds the cases in a folder of scans, and decides which files belong to which case.

Knows nothing of models beyond the number and names of their channels, and nothing of what is done with a case.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from voxtile.errors import InputError
from voxtile.io.formats import SUFFIXES, is_scan, stem_of

CHANNEL = re.compile(r"_(\d{4})$")
"""nnU-Net's naming: CASE_0000.nii.gz is the first channel of CASE."""


@dataclass(frozen=True)
class CaseFiles:
    """One case of a folder.

    Attributes:
        name: its name, with folders, relative to the input folder.
        files: its files, one for each channel.
        mask: where its mask is written.
    """

    name: str
    files: tuple[Path, ...]
    mask: Path

    def beside(self, suffix: str) -> Path:
        """Where a file that ends in `suffix` is written: beside the mask, under its name."""
        return self.mask.with_name(f"{stem_of(self.mask)}{suffix}")


def find_cases(inputs: Path, outputs: Path, channels: int) -> list[CaseFiles]:
    """Finds the cases under a folder, at any depth.

    Files that follow nnU-Net's naming are gathered by case; each other file is a case of its own.

    Args:
        inputs: the folder.
        outputs: where masks are written; not searched.
        channels: the number of the model's channels.

    Returns:
        The cases in the order of their names.

    Raises:
        InputError: `inputs` is no folder, holds no scan, or holds two cases whose masks would have the same name.
    """
    if not inputs.is_dir():
        raise InputError(f"{inputs}: expected a folder of scans, found {'a file' if inputs.exists() else 'nothing'}")
    groups: dict[str, list[Path]] = {}
    for file in sorted(path for path in inputs.rglob("*") if is_scan(path) and path.is_file()):
        if outputs in file.parents or file.name.startswith("."):
            continue
        stem = stem_of(file)
        name = str((file.parent / CHANNEL.sub("", stem)).relative_to(inputs))
        groups.setdefault(name, []).append(file)
    if not groups:
        raise InputError(f"{inputs}: expected scans ({', '.join(SUFFIXES)}) in this folder or below, found none")
    cases = [case for name, files in groups.items() for case in _cases_of(name, files, outputs, channels)]
    _check_masks_differ(cases)
    return sorted(cases, key=lambda case: case.name)


def _check_masks_differ(cases: Sequence[CaseFiles]) -> None:
    """Raises InputError where the mask of one case would replace that of another."""
    seen: dict[Path, CaseFiles] = {}
    for case in cases:
        other = seen.setdefault(case.mask, case)
        if other is not case:
            files = ", ".join(map(str, (*other.files, *case.files)))
            raise InputError(f"{case.mask}: two cases would have this mask ({files}); rename or move one of them")


def check_channel_numbers(case: CaseFiles, channels: Sequence[str]) -> None:
    """Raises InputError for a case whose files' numbers are not those of the model's channels, one file for each."""
    numbers = [int(found[1]) for file in case.files if (found := CHANNEL.search(stem_of(file)))]
    if len(channels) == 1 or len(numbers) != len(case.files) or numbers in ([0], [*range(len(channels))]):
        return  # a single first file may hold all channels as frames, which its reader knows
    wanted = ", ".join(f"_{number:04d} {name}" for number, name in enumerate(channels))
    found_files = ", ".join(file.name for file in case.files)
    raise InputError(f"{case.name}: expected one file for each channel ({wanted}), found {found_files}")


def _cases_of(name: str, files: list[Path], outputs: Path, channels: int) -> Iterator[CaseFiles]:
    """A group of files is one case where it has the model's channels; otherwise each file is a case of its own."""
    numbered = all(CHANNEL.search(stem_of(file)) for file in files)
    if numbered and (len(files) == channels or channels > 1):
        yield CaseFiles(name, tuple(files), outputs / f"{name}.nii.gz")
        return
    for file in files:
        own = str(Path(name).with_name(stem_of(file)))
        yield CaseFiles(own, (file,), outputs / f"{own}.nii.gz")
