"""Gathers scans with BIDS names into cases: which files are channels of one case is told by their suffixes.

Where none of a folder's suffixes is a channel's name, BIDS
names are names like any other. Knows nothing of what is in a file, and nothing of masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from voxtile.io.bids import BidsName, bids_name, contrast_of

DATATYPES = ("anat", "ct", "pet", "perf", "dwi", "func", "fmap", "mri")
"""Folders within that of a subject or a session; the channels of one case may lie in several of them."""


@dataclass(frozen=True)
class BidsCase:
    """Files that BIDS names make a case of a model of several channels.

    Attributes:
        name: the case, with its folder.
        files: its files in the order of the model's channels.
        fault: what is wrong with it; empty where nothing is.
    """

    name: Path
    files: tuple[Path, ...]
    fault: str = ""


@dataclass
class BidsScans:
    """What BIDS names say of the scans of a folder.

    Attributes:
        cases: the cases of a model of several channels.
        others: files of other contrasts than the model's channels; `why` says so.
        rest: files that BIDS says nothing of.
        why: why `others` are left out.
    """

    cases: list[BidsCase] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    rest: list[Path] = field(default_factory=list)
    why: str = ""


def by_suffix(files: Sequence[Path], channels: Sequence[str]) -> BidsScans:
    """Sorts scans by their BIDS names.

    Args:
        files: the scans.
        channels: the model's channels, by name.
    """
    contrasts = [contrast_of(name) for name in channels]
    scans = [scan for scan in map(bids_name, files) if scan is not None]
    if len(set(contrasts)) < len(contrasts) or not any(scan.contrast in contrasts for scan in scans):
        return BidsScans(rest=list(files))
    found = BidsScans(why=f"a BIDS suffix that is no channel of the model ({', '.join(channels)})")
    named = {scan.file for scan in scans}
    found.rest = [file for file in files if file not in named]
    found.others = [scan.file for scan in scans if scan.contrast not in contrasts]
    wanted = [scan for scan in scans if scan.contrast in contrasts]
    if len(channels) == 1:
        found.rest = sorted(found.rest + [scan.file for scan in wanted])
    else:
        found.cases = [case for group in _sessions(wanted) for case in _cases(group, contrasts, channels)]
    return found


def _sessions(scans: Sequence[BidsName]) -> list[list[BidsName]]:
    """The scans of each subject and session."""
    groups: dict[tuple[Path, tuple[str, ...]], list[BidsName]] = {}
    for scan in scans:
        session = tuple(entity for entity in scan.entities if entity.startswith(("sub-", "ses-")))
        groups.setdefault((_place(scan.file), session), []).append(scan)
    return list(groups.values())


def _place(file: Path) -> Path:
    """The folder of the subject or session of a file."""
    return file.parent.parent if file.parent.name in DATATYPES else file.parent


def _cases(session: Sequence[BidsName], contrasts: Sequence[str], channels: Sequence[str]) -> list[BidsCase]:
    """The cases of one session: one where each channel is there once, else one for each set of equal entities."""
    if sorted(scan.contrast for scan in session) == sorted(contrasts):
        return [_case(session, contrasts, channels)]
    groups: dict[tuple[str, ...], list[BidsName]] = {}
    for scan in session:
        groups.setdefault(scan.entities, []).append(scan)
    return [_case(group, contrasts, channels) for group in groups.values()]


def _case(scans: Sequence[BidsName], contrasts: Sequence[str], channels: Sequence[str]) -> BidsCase:
    first = scans[0]
    shared = [entity for entity in first.entities if all(entity in scan.entities for scan in scans)]
    folders = {scan.file.parent for scan in scans}
    folder = first.file.parent if len(folders) == 1 else _place(first.file)
    files = tuple(scan.file for scan in sorted(scans, key=lambda scan: contrasts.index(scan.contrast)))
    right = sorted(scan.contrast for scan in scans) == sorted(contrasts)
    listed = ", ".join(file.name for file in files)
    fault = f"expected one file for each channel by its BIDS suffix ({', '.join(channels)}), found {listed}"
    return BidsCase(folder / "_".join(shared), files, "" if right else fault)
