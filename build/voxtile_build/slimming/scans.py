"""The scans that a teacher labels: finds them, keeps some of them apart, and prepares each as a client does.

Knows nothing of teachers, pools or training.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from voxtile.batch.cases import CaseFiles, check_channel_numbers, gather_cases, left_out_in_words
from voxtile.card import Card, Provenance
from voxtile.chains.prepare import prepare_scan, reader_of
from voxtile.errors import InputError, VoxtileError, in_one_line
from voxtile.io.formats.all import all_files
from voxtile.io.scan import open_scan
from voxtile.io.volume import Volume
from voxtile_build.errors import ScanError, SlimmingError
from voxtile_build.evaluation.samples import Scan
from voxtile_build.hashing import file_sha256
from voxtile_build.progress import teller
from voxtile_build.repository.card import card_of
from voxtile_build.slimming.given.groups import grouped, subject_of
from voxtile_build.slimming.given.looked_at import LookedAt
from voxtile_build.slimming.given.values import Values, values_of
from voxtile_build.spec.spec import Spec

Told = Callable[[str], None]
"""Called with a line for the user."""

Region = tuple[slice, ...]
"""A part of a prepared scan: a slice for each spatial axis."""

MARGIN = 4
"""Voxels between what is trained on and what is held out of one scan: resampling mixes neighbours."""

SMALLEST = 8
"""Voxels of either part along the axis that is cut: less shows nothing."""

HELD_OUT_THIRD = 3
"""One part in so many of a single scan is held out."""

OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
"""An option of a command, in what it says."""

NO_MASKS = ".voxtile-no-masks"
"""A folder that is not there: nobody writes masks here."""


@dataclass(frozen=True)
class TrainingScan:
    """One scan, which was read once.

    Attributes:
        name: its name, with folders, relative to the folder of scans.
        files: its files, one for each channel, or one for all.
        sha256: of the bytes of all its files, one after the other.
        subject: the BIDS subject; empty where its name says none.
        values: what each channel's values look like.
    """

    name: str
    files: tuple[Path, ...]
    sha256: str
    subject: str = ""
    values: tuple[Values, ...] = field(default=(), compare=False, repr=False)

    @property
    def voxels(self) -> tuple[str, ...]:
        """SHA-256 of each channel's voxels, whatever the format and the type that they are stored in."""
        return tuple(one.voxels for one in self.values)


def find_scans(
    folder: Path, spec: Spec, told: Told = lambda _: None, looked_at: LookedAt | None = None
) -> tuple[TrainingScan, ...]:
    """The scans under a folder, by the rules of `voxtile batch`; each is read once.

    What cannot be read is left out, and so is a scan with the voxels of another; `told` gets a line for each reason.

    Args:
        folder: of scans, at any depth.
        spec: the teacher's.
        told: gets the lines.
        looked_at: what an earlier run read is not read again; what this one reads is noted.

    Raises:
        SlimmingError: there is no scan that can be used.
    """
    card = _card(spec)
    try:
        found = gather_cases(folder, folder / NO_MASKS, card.input_channels)
    except VoxtileError as error:
        raise SlimmingError(str(error)) from None
    for line in left_out_in_words(found.left_out):
        told(line)
    scans, failures, tell = list[TrainingScan](), list[str](), teller()
    for number, case in enumerate(found.cases, 1):
        try:
            scans.append(_looked_at(case, card, len(spec.tiling.roi_size), looked_at or LookedAt()))
        except Exception as error:  # whatever it is, it is this scan's
            failures.append(f"left out {case.name}: {_said(error)}")
            told(failures[-1])
        tell(number / len(found.cases))
    if not scans:
        more = f"; so are {len(failures) - 1} more" if len(failures) > 1 else ""
        raise SlimmingError(f"{folder}: expected scans that can be read, found none; {failures[0]}{more}")
    return _without_copies(scans, told)


def split(
    scans: Sequence[TrainingScan], held_out: float, seed: int, *, alone: bool = False
) -> tuple[tuple[TrainingScan, ...], tuple[TrainingScan, ...]]:
    """Parts the scans into those to train on and those to judge by, which no training sees.

    Scans of one BIDS subject, and scans that share a channel's voxels, are on one side. What is held out follows from
    the seed and from the content of the scans, not from their names or their order.

    Args:
        scans: all scans.
        held_out: the share to hold out, above 0 and below 1; at least one is held out.
        seed: chooses.
        alone: take scans that all belong together, such as a single one; a block of each is then to be held out, see
            `train_region` and `held_out_region`, and all are on both sides.

    Raises:
        SlimmingError: the share is none, or the scans cannot be parted.
    """
    if not 0 < held_out < 1:
        raise SlimmingError(f"--held-out: expected a share above 0 and below 1, found {held_out:g}")
    groups = _persons(scans)
    if len(groups) < 2:
        if alone:
            return tuple(scans), tuple(scans)
        raise SlimmingError(_cannot_part(scans))
    order = sorted(groups, key=lambda group: _rank(group, seed))
    wanted = min(max(1, round(held_out * len(scans))), len(scans) - 1)
    kept, chosen = list[TrainingScan](), list[TrainingScan]()
    for group in order:
        (chosen if len(chosen) + len(group) <= wanted else kept).extend(group)
    if not chosen:  # every group is larger than what is to be held out
        smallest = min(order, key=len)
        chosen, kept = list(smallest), [scan for group in order if group is not smallest for scan in group]
    return _by_content(kept), _by_content(chosen)


def persons_in_words(scans: Sequence[TrainingScan]) -> str:
    """How many persons the scans are taken to be of, and by what; in a line."""
    count, named = len(_persons(scans)), sum(bool(scan.subject) for scan in scans)
    told = f"{_counted(len(scans), 'scan')} of {_counted(count, 'person')}"
    if named == len(scans):
        return f"{told}, by sub-… in their names"
    others = "by sub-… in their names, the others each" if named else "each"
    return (
        f"{told}: {others} taken for another person's unless it shares voxels; where a person has several, name them "
        "sub-X_…, so that none is judged on what was trained on"
    )


def read(scan: TrainingScan, spec: Spec) -> Scan:
    """The scan, prepared by the client's own code: turned, resampled, and in the type in which it is sent.

    Raises:
        ScanError: it cannot be used, or its files are not what they were.
    """
    card = _card(spec)
    try:
        if _sha256(scan.files) != scan.sha256:
            raise ScanError(f"{scan.name}: its files are not what they were when the scans were looked for; run again")
        prepared = prepare_scan(_volume(scan.files, card), card)
    except (VoxtileError, OSError) as error:
        raise ScanError(f"{scan.name}: {error}") from None
    volume = prepared.encode(prepared.data)
    plain = np.tile(np.array([0, 1], np.float32), (len(volume), 1))
    statistics = plain if prepared.statistics is None else prepared.statistics
    return Scan(scan.name, volume, statistics, prepared.spacing)


def train_region(scan: Scan) -> Region:
    """The part of a single scan that may be trained on; it ends MARGIN voxels before what is held out.

    Raises:
        SlimmingError: the scan is too small to be parted.
    """
    return _parted(scan)[0]


def held_out_region(scan: Scan) -> Region:
    """The part of a single scan that is held out: the last third along its longest axis.

    Raises:
        SlimmingError: the scan is too small to be parted.
    """
    return _parted(scan)[1]


def block(scan: Scan, region: Region) -> Scan:
    """A part of a scan as a scan, with the statistics of the whole."""
    return replace(scan, volume=scan.volume[(slice(None), *region)])


def _looked_at(case: CaseFiles, card: Card, axes: int, looked_at: LookedAt) -> TrainingScan:
    """The scan of a case, read once. Raises VoxtileError and OSError."""
    check_channel_numbers(case, card.input_channels)
    key = looked_at.key(case.all_files, f"{reader_of(card)} {len(card.input_channels)} {axes}")
    known = looked_at.find(key)
    if known is None:
        known = _sha256(case.files), _values(case, card, axes)
        looked_at.keep(key, *known)
    return TrainingScan(case.name, case.files, known[0], subject_of(case.name), known[1])


def _values(case: CaseFiles, card: Card, axes: int) -> tuple[Values, ...]:
    volume = _volume(case.files, card)
    if sum(size > 1 for size in volume.shape) < axes:
        found = " × ".join(map(str, volume.shape))
        raise InputError(f"expected a scan that extends along {axes} axes, as the network does, found {found} voxels")
    return tuple(values_of(channel) for channel in volume.towards("RAS").apply(volume.data))


def _volume(files: Sequence[Path], card: Card) -> Volume:
    return open_scan(list(files), card.input_channels, reader_of(card))


def _sha256(files: Sequence[Path]) -> str:
    return file_sha256(*(part for file in files for part in all_files(file)))


def _card(spec: Spec) -> Card:
    """The card that a client would get; nothing of it depends on an engine."""
    place = Provenance(network=spec.network.title, weights_sha256="", onnx_sha256="")
    return card_of(spec, spec.serving.engines[0], {}, place)


def _without_copies(scans: Sequence[TrainingScan], told: Told) -> tuple[TrainingScan, ...]:
    """One scan of each set that have the same voxels in all channels."""
    kept: dict[tuple[str, ...], TrainingScan] = {}
    for scan in scans:
        other = kept.setdefault(scan.voxels, scan)
        if other is not scan:
            told(f"left out {scan.name}: it has the voxels of {other.name}")
    return tuple(kept.values())


def _said(error: Exception) -> str:
    """What the client says of a scan, without advice to give options of its own, which a distillation lacks."""
    parts = in_one_line(error).split("; ")
    kept = [part for part in parts if not OPTION.search(part)] or ["it cannot be read as it is"]
    advice = ["write a repaired copy of the scan, and give that"] if isinstance(error, InputError) else []
    return "; ".join(parts if len(kept) == len(parts) else [*kept, *advice])


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"


def _persons(scans: Sequence[TrainingScan]) -> list[tuple[TrainingScan, ...]]:
    """The scans by person, as far as names and voxels tell."""
    return [tuple(scans[index] for index in group) for group in grouped([_ties(scan) for scan in scans])]


def _ties(scan: TrainingScan) -> tuple[str, ...]:
    """What binds it to other scans. An empty channel, such as one that was not taken, binds nobody."""
    own = [one.voxels for one in scan.values if not one.is_constant] or [scan.sha256]
    return (*([scan.subject] if scan.subject else []), *own)


def _rank(group: Sequence[TrainingScan], seed: int) -> str:
    content = sorted(",".join(scan.voxels) or scan.sha256 for scan in group)
    return hashlib.sha256("\n".join([str(seed), *content]).encode()).hexdigest()


def _by_content(scans: Sequence[TrainingScan]) -> tuple[TrainingScan, ...]:
    return tuple(sorted(scans, key=lambda scan: scan.sha256))


def _cannot_part(scans: Sequence[TrainingScan]) -> str:
    if len(scans) == 1:
        found = f"{scans[0].name} alone"
    else:
        subject = f"of {scans[0].subject}" if scans[0].subject else "that share voxels"
        found = f"{len(scans)} scans {subject}"
    return (
        f"expected scans of two persons or more, to train on some and judge by the others, found {found}; add scans, "
        "or give --one-scan to hold out a block of it, which proves less"
    )


def _parted(scan: Scan) -> tuple[Region, Region]:
    sizes = scan.volume.shape[1:]
    axis = int(np.argmax(sizes))
    last = sizes[axis] // HELD_OUT_THIRD
    cut = sizes[axis] - last
    if last < SMALLEST or cut - MARGIN < SMALLEST:
        least = math.ceil(SMALLEST * HELD_OUT_THIRD)
        raise SlimmingError(
            f"{scan.name}: expected at least {least} voxels along one axis, to hold out a block, found {list(sizes)} "
            "on the model's grid; add scans"
        )
    whole = [slice(0, size) for size in sizes]
    train, held = list(whole), list(whole)
    train[axis], held[axis] = slice(0, cut - MARGIN), slice(cut, sizes[axis])
    return tuple(train), tuple(held)
