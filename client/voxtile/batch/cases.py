"""Gathers the scans of a folder into cases: decides which files belong to which case, and where its mask is written.

Knows nothing of models beyond the names of their channels, and nothing of what is done with a case.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from voxtile.batch.bids import by_suffix
from voxtile.batch.record import CaseRecord, ScanFile, scan_file, uri_of
from voxtile.batch.remote_scan import RemoteScan
from voxtile.batch.walk import LeftOut, walk
from voxtile.errors import InputError, OutputError
from voxtile.io.channel_numbers import check_numbers_of_case, split_number
from voxtile.io.formats.all import SUFFIXES, all_files, stem_of
from voxtile.io.given import Given
from voxtile.io.same_file import KnownFiles, same_folder
from voxtile.outputs.base import Output

MASK_SUFFIX = ".nii.gz"


@dataclass(frozen=True)
class CaseFiles:
    """One case of a folder, or of a manifest.

    Attributes:
        name: its name, with folders; in a folder, relative to it.
        files: its files, one for each channel.
        mask: where its mask is written.
        is_numbered: whether its files are told apart by nnU-Net's channel numbers, which `name` does not hold.
        fault: what is wrong with its files by their BIDS names; empty where nothing is.
        given: what is said of this case alone beside what its files say; None for what is said of all.
        options: the same in the words of a manifest.
        remote: those of its files that lie at addresses; they are in the spool only while `at_hand` says so.
    """

    name: str
    files: tuple[Path, ...]
    mask: Path
    is_numbered: bool = False
    fault: str = ""
    given: Given | None = None
    options: str = ""
    remote: Mapping[Path, RemoteScan] = field(default_factory=dict)

    @property
    def all_files(self) -> list[Path]:
        """Its files, and those of voxels whose headers these are."""
        return [part for file in self.files for part in all_files(file)]

    @contextlib.contextmanager
    def at_hand(self) -> Iterator[dict[Path, ScanFile]]:
        """Fetches what lies at addresses, and removes it after the block; gives what is recorded of that.

        Raises:
            VoxtileError: it cannot be fetched.
        """
        with contextlib.ExitStack() as stack:
            yield {file: stack.enter_context(scan.at_hand()) for file, scan in self.remote.items()}

    def scan_files(self, fetched: Mapping[Path, ScanFile]) -> list[ScanFile]:
        """What is recorded of its files, which were just read. Raises OSError."""
        return [fetched.get(file) or scan_file(file) for file in self.all_files]

    def is_scan_of(self, record: CaseRecord) -> bool:
        """Whether its files have the content of a recorded scan. Raises OSError, or ServerUnavailable."""
        files = self.all_files
        return len(files) == len(record.scans) and all(
            self.remote[file].is_still(scan) if file in self.remote else scan.is_still(file)
            for scan, file in zip(record.scans, files, strict=True)
        )

    def lies_where(self, record: CaseRecord) -> bool:
        """Whether its files lie where a recorded scan lay."""
        places = [str(self.remote[file].address) if file in self.remote else uri_of(file) for file in self.all_files]
        return [scan.uri for scan in record.scans] == places

    def beside(self, suffix: str) -> Path:
        """Where a file that ends in `suffix` is written: beside the mask, under its name."""
        return self.mask.with_name(f"{self.mask.name.removesuffix(MASK_SUFFIX)}{suffix}")

    def targets(self, beside: Sequence[Output]) -> dict[str, Path]:
        """All files that are written for it, by the endings of their names; the mask is the first."""
        endings = [suffix for output in beside for suffix in (output.suffix, *output.companions)]
        return {suffix: self.beside(suffix) for suffix in (MASK_SUFFIX, *endings)}


@dataclass(frozen=True)
class FoundCases:
    """What was found in a folder.

    Attributes:
        cases: the cases in the order of their names.
        left_out: what lies there and belongs to no case.
    """

    cases: tuple[CaseFiles, ...]
    left_out: tuple[LeftOut, ...]


def find_cases(inputs: Path, outputs: Path, channels: Sequence[str], beside: Sequence[Output] = ()) -> FoundCases:
    """Finds the cases under a folder, at any depth.

    Files that follow nnU-Net's naming, or BIDS's for a model of several channels, are gathered by case; each other file
    is a case of its own.

    Args:
        inputs: the folder.
        outputs: where masks are written; not searched.
        channels: the model's channels, by name.
        beside: what else is written for each case.

    Raises:
        InputError: `inputs` is no folder, is `outputs`, or holds no scan; or two cases would have one mask.
        OutputError: a file that is written would replace a scan, or would itself be taken for one later.
    """
    found = gather_cases(inputs, outputs, channels)
    _check_apart(found.cases, beside)
    _check_not_among_scans(found.cases, inputs, outputs)
    return found


def check_is_folder(inputs: Path) -> None:
    """Raises InputError for what is no folder of scans."""
    if not inputs.is_dir():
        raise InputError(f"{inputs}: expected a folder of scans, found {'a file' if inputs.exists() else 'nothing'}")


def gather_cases(inputs: Path, outputs: Path, channels: Sequence[str]) -> FoundCases:
    """Finds the cases under a folder as `find_cases` does, for whoever writes no masks.

    Args:
        inputs: the folder.
        outputs: a folder that is not searched, and need not exist.
        channels: the model's channels, by name.

    Raises:
        InputError: `inputs` is no folder, is `outputs`, or holds no scan.
    """
    check_is_folder(inputs)
    if same_folder(inputs, outputs):
        raise InputError(f"{outputs}: expected another folder for masks than that of the scans; choose another")
    try:
        found = walk(inputs, outputs)
    except OSError as error:
        raise InputError(f"{inputs}: the folder cannot be read ({error.strerror or error})") from None
    if not found.scans:
        wanted = f"{inputs}: expected scans ({', '.join(SUFFIXES)}) in this folder or below, found none"
        raise InputError("; ".join([wanted, *left_out_in_words(found.left_out)]))
    bids = by_suffix(found.scans, channels)
    found.left_out += [LeftOut(str(file.relative_to(inputs)), bids.why, may_be_scan=False) for file in bids.others]
    groups: dict[tuple[Path, bool], list[Path]] = {}
    for file in bids.rest:
        stem, number = split_number(file)
        groups.setdefault((file.with_name(stem), number is not None), []).append(file)
    cases = [
        CaseFiles(str(name.relative_to(inputs)), files, outputs / f"{name.relative_to(inputs)}{MASK_SUFFIX}", numbered)
        for (name, has_numbers), group in groups.items()
        for name, files, numbered in _cases_of(name, group, has_numbers, len(channels))
    ]
    for case in bids.cases:
        mask = outputs / f"{case.name.relative_to(inputs)}{MASK_SUFFIX}"
        cases.append(CaseFiles(str(case.name.relative_to(inputs)), case.files, mask, fault=case.fault))
    return FoundCases(tuple(sorted(cases, key=lambda case: case.name)), tuple(found.left_out))


def check_channel_numbers(case: CaseFiles, channels: Sequence[str]) -> None:
    """Raises InputError for a case whose files' names are not those of the model's channels, one file for each."""
    if case.fault:
        raise InputError(f"{case.name}: {case.fault}; add what is missing, or move what is another scan")
    if not case.is_numbered:
        return
    try:
        check_numbers_of_case(case.files, channels)
    except InputError as error:
        raise InputError(f"{case.name}: {error}") from None


def left_out_in_words(left_out: Sequence[LeftOut], most: int = 3) -> list[str]:
    """One sentence for each reason: how many were left out, and the first few by name."""
    reasons: dict[str, list[LeftOut]] = {}
    for one in left_out:
        reasons.setdefault(one.reason, []).append(one)
    return [
        f"left out {sum(1 + one.others for one in group)}: {reason} ({', '.join(one.path for one in group[:most])}"
        f"{', …' if sum(1 + one.others for one in group) > min(most, len(group)) else ''})"
        for reason, group in reasons.items()
    ]


def _cases_of(
    name: Path, files: Sequence[Path], has_numbers: bool, channels: int
) -> list[tuple[Path, tuple[Path, ...], bool]]:
    """Name, files, and whether these are channels, of each case that files with one name and a number each make.

    The numbers are channels' if the first channel's is among them or, for a model of several channels, any of its
    channels'. Other four digits are part of a name, such as a patient's, whatever lies beside.
    """
    firsts = {0} if channels == 1 else set(range(channels))
    if has_numbers and firsts & {split_number(file)[1] for file in files}:
        return [(name, tuple(files), True)]
    return [(file.with_name(stem_of(file)), (file,), False) for file in files]


def _check_apart(cases: Sequence[CaseFiles], beside: Sequence[Output]) -> None:
    """Checks that each file is written once and that none is a scan. Raises InputError or OutputError."""
    scans, written = KnownFiles(), KnownFiles()
    for case in cases:
        for file in case.all_files:
            scans.add(file, str(file))
    for case in cases:
        files = {target: _as_what(case, suffix) for suffix, target in case.targets(beside).items()}
        for target, what in files.items():
            other = written.find(target)
            if other is not None:
                raise InputError(
                    f"{target}: two cases would have this file ({other}; {what}); rename or move one of them"
                )
            scan = scans.find(target)
            if scan is not None:
                raise OutputError(f"{target}: would replace the scan {scan}; choose another folder for masks")
        for target, what in files.items():
            written.add(target, what)


def _as_what(case: CaseFiles, suffix: str) -> str:
    """What a file that ends in `suffix` is to a case, in words."""
    what = "the mask" if suffix == MASK_SUFFIX else f"the file {suffix}"
    return f"{what} of {', '.join(map(str, case.files))}"


def _check_not_among_scans(cases: Sequence[CaseFiles], inputs: Path, outputs: Path) -> None:
    """Raises OutputError where a mask would lie among the scans, and be taken for one by the next run."""
    within, masks = inputs.resolve(), outputs.resolve()
    for case in cases:
        place = Path(os.path.realpath(case.mask.parent))
        not_searched = masks.is_relative_to(within) and place.is_relative_to(masks)
        if place.is_relative_to(within) and not not_searched:
            raise OutputError(
                f"{case.mask}: this mask would lie among the scans in {inputs}, and the next run would take it for a "
                "scan; choose another folder for masks"
            )
