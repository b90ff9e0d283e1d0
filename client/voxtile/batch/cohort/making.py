"""Makes a manifest of a folder of scans, by the rules by which `voxtile batch` gathers their cases.

Knows nothing of models beyond the names of their channels.
"""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from voxtile.batch.bids import by_suffix
from voxtile.batch.cases import CaseFiles, FoundCases, check_channel_numbers, check_is_folder, gather_cases
from voxtile.batch.cohort.columns import CASE, WHOLE
from voxtile.batch.cohort.manifest import parse_manifest
from voxtile.batch.cohort.names import check_name
from voxtile.batch.cohort.remote_scans import Remote
from voxtile.batch.walk import LeftOut, walk
from voxtile.errors import InputError
from voxtile.io.atomic import atomic_file, hidden_name
from voxtile.io.bids import bids_name
from voxtile.io.channel_numbers import split_number
from voxtile.io.formats.all import stem_of
from voxtile.io.same_file import KnownFiles

NOWHERE = hidden_name()
"""A folder for masks that is not there: a manifest does not say where masks are written."""


@dataclass(frozen=True)
class MadeManifest:
    """A manifest of a folder.

    Attributes:
        columns: its columns of files.
        cases: its cases, in the order of their names.
        left_out: what lies in the folder and is in no case.
        faults: cases that are left out, and why, a line for each.
    """

    columns: tuple[str, ...]
    cases: tuple[CaseFiles, ...]
    left_out: tuple[LeftOut, ...]
    faults: tuple[str, ...]


def manifest_of(folder: Path, channels: Sequence[str] = ()) -> MadeManifest:
    """Gathers the cases of a folder for a manifest.

    Args:
        folder: the folder of scans.
        channels: the model's channels, by name; without them the names of the files tell how many there are: BIDS
            suffixes, or nnU-Net's numbers. Where they tell nothing, each file is a case.

    Raises:
        InputError: it is no folder of scans, or its names leave open what the channels are.
    """
    check_is_folder(folder)
    nowhere = folder / NOWHERE
    named = tuple(channels) or _channels_of(folder, nowhere)
    found = gather_cases(folder, nowhere, named)
    cases, faults = _sound(found, named)
    if not cases:
        raise InputError("; ".join([f"{folder}: expected cases with all channels, found none", *faults[:3]]))
    whole = len(cases[0].files) == 1 and len(channels) != 1
    return MadeManifest((WHOLE,) if whole else named, tuple(cases), found.left_out, tuple(faults))


def write_manifest(made: MadeManifest, path: Path, remote: Remote | None = None) -> None:
    """Writes a manifest; files below its own folder are named relative to it.

    Args:
        made: the manifest.
        path: its file.
        remote: knows the addresses of the files; None for files of this machine.

    Raises:
        InputError: a batch would not read it as it was meant.
        OutputError: it cannot be written.
    """
    home = os.path.abspath(path.parent)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([CASE, *made.columns])
    for case in made.cases:
        cells = [
            str(remote.address_of(file)) if remote else _relative(os.path.abspath(file), home) for file in case.files
        ]
        table.writerow([case.name, *cells])
    data = text.getvalue().encode()
    parse_manifest(data, path, path.parent / NOWHERE, made.columns, remote=remote)
    with atomic_file(path) as file:
        file.write(data)


def _channels_of(folder: Path, nowhere: Path) -> tuple[str, ...]:
    """The channels that the names of the files tell. Raises InputError where these leave it open."""
    try:
        scans = walk(folder, nowhere).scans
    except OSError as error:
        raise InputError(f"{folder}: the folder cannot be read ({error.strerror or error})") from None
    return _by_suffixes(scans, folder) or _by_numbers(scans)


def _by_suffixes(scans: Sequence[Path], folder: Path) -> tuple[str, ...]:
    """The BIDS suffixes of the scans, where each session has each of them; nothing where names are no BIDS names."""
    named = [scan for scan in map(bids_name, scans) if scan is not None]
    if len(named) < len(scans) or not named:
        return ()
    suffixes = {scan.contrast: stem_of(scan.file).rpartition("_")[2] for scan in named}
    channels = tuple(suffixes[contrast] for contrast in sorted(suffixes))
    if len(set(suffixes.values())) == len(channels):
        found = by_suffix(scans, channels)
        if len(channels) == 1 or not any(case.fault for case in found.cases):
            return channels
    listed = ", ".join(sorted({stem_of(scan.file).rpartition("_")[2] for scan in named}))
    raise InputError(
        f"{folder}: expected the same BIDS suffixes in every session, found {listed}, not each in each; say the "
        "model's channels in its order with --channels, or name the model with --model"
    )


def _by_numbers(scans: Sequence[Path]) -> tuple[str, ...]:
    """Channels by nnU-Net's numbers: as many as most cases have that have the first one, in one row."""
    groups: dict[Path, set[int]] = {}
    for scan in scans:
        name, number = split_number(scan)
        if number is not None:
            groups.setdefault(scan.with_name(name), set()).add(number)
    counts = Counter(len(numbers) for numbers in groups.values() if numbers == set(range(len(numbers))))
    count = max(counts, key=lambda one: (counts[one], one)) if counts else 1
    return tuple(f"channel_{number:04d}" for number in range(count))


def _sound(found: FoundCases, channels: Sequence[str]) -> tuple[list[CaseFiles], list[str]]:
    """The cases that a manifest can hold, and what is wrong with the others."""
    whole = all(len(case.files) == 1 and not case.fault for case in found.cases)
    cases, faults = list[CaseFiles](), list[str]()
    names, scans = dict[str, CaseFiles](), KnownFiles()
    for case in found.cases:
        fault = _fault(case, channels, 1 if whole else len(channels))
        if not fault and case.name in names:
            other = names[case.name].files[0]
            fault = f"two cases would have this name ({other.name}, {case.files[0].name}); rename one"
        same = next((same for file in case.all_files if (same := scans.find(file))), "")
        if not fault and same:
            fault = f"expected each scan once, found that of the case {same} under another name"
        if fault:
            faults.append(f"{case.name}: {fault}")
            continue
        cases.append(case)
        names[case.name] = case
        for file in case.all_files:
            scans.add(file, case.name)
    return cases, faults


def _fault(case: CaseFiles, channels: Sequence[str], count: int) -> str:
    try:
        check_channel_numbers(case, channels)
        check_name(case.name)
        "".join(map(os.fspath, case.files)).encode()
    except InputError as error:
        return str(error).removeprefix(f"{case.name}: ")
    except UnicodeEncodeError:
        return "expected a name in UTF-8, which a table can hold, found another; rename it"
    if len(case.files) != count:
        return f"expected {count} files, one for each channel, found {', '.join(file.name for file in case.files)}"
    return ""


def _relative(file: str, home: str) -> str:
    return os.path.relpath(file, home) if Path(file).is_relative_to(home) else file
