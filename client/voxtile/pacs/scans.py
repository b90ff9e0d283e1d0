"""Lets a scan be named by its address in a PACS: it lies in a folder here for as long as it is read.

Knows nothing of models.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from voxtile.errors import InputError, VoxtileError
from voxtile.io.dicom.choice import SeriesChoice
from voxtile.io.scan import ScanInput, ScanItem, choices_of, sources_of
from voxtile.io.volume import Volume
from voxtile.pacs.access import SOURCE_TOKEN, Access, token_of
from voxtile.pacs.address import Address, Wanted, is_uid, looks_like_address, parse_source
from voxtile.pacs.fetch import fetched


def _access_by_environment() -> Access:
    return Access(token_of(None, SOURCE_TOKEN))


@dataclass(frozen=True)
class PacsScan:
    """A scan that lies in a PACS.

    Attributes:
        address: `https://HOST/…/dicom-web/studies/UID`, that of a series, or `AET@HOST:PORT`.
        study: the study's UID, where the address does not name it.
        series: the series' UID, where the address does not name it; None for the one of the study that is chosen.
        access: how to call the PACS; by default with the token in the environment variable VOXTILE_FROM_TOKEN.

    Raises:
        InputError: it is no such address, or names no study.
    """

    address: str = field(repr=False)
    study: str | None = field(default=None, repr=False)
    series: str | None = field(default=None, repr=False)
    access: Access = field(default_factory=_access_by_environment, repr=False)

    def __post_init__(self) -> None:
        _ = self.place  # says what is wrong with it

    @property
    def place(self) -> tuple[Address, Wanted]:
        """Where it is, and what of it is meant."""
        return parse_source(self.address, self.study, self.series)


ScanOrAddress = ScanInput | PacsScan | Sequence[ScanItem | PacsScan]
"""A scan, or where one lies in a PACS: a `PacsScan`, or its address as a text; or a list with one for each channel."""


@dataclass(frozen=True)
class AtHand:
    """A scan that can be read.

    Attributes:
        image: the scan, as `open_scan` takes it.
        warnings: what a user should know of how it came, in words.
        names: what messages call the folders that scans were fetched into.
    """

    image: ScanInput
    warnings: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)

    def named(self, volume: Volume) -> Volume:
        """The scan that was read, named after where it came from."""
        warnings = (*self.warnings, *volume.warnings)
        return replace(volume, names=tuple(map(self.in_words, volume.names)), warnings=warnings)

    def in_words(self, text: str) -> str:
        """A message in which no folder is named that is gone when it is read."""
        for folder, name in self.names.items():
            text = text.replace(f"{folder}/", f"{name}, object ").replace(folder, name)
        return text


@contextlib.contextmanager
def at_hand(image: ScanOrAddress, choice: SeriesChoice) -> Iterator[AtHand]:
    """Gives a scan as what lies on this machine: what lies in a PACS is fetched, and removed after the block.

    Args:
        image: the scan.
        choice: which series; of those that are named by their UIDs, only these are fetched.

    Raises:
        InputError: an address is none, or the PACS does not have the scan, or not all of it came.
        ServerUnavailable: the PACS does not answer, or refuses access.
        OutputError: what comes cannot be kept on this machine.
    """
    items = [] if isinstance(image, Volume) else [_pacs_scan(item) for item in sources_of(image)]
    if not any(isinstance(item, PacsScan) for item in items):
        yield AtHand(image)  # type: ignore[arg-type]  # nothing in it is in a PACS
        return
    choices = choices_of(items, choice)
    items = items * len(choices) if len(items) == 1 else items
    wanted = [_narrowed(item, one) for item, one in zip(items, choices, strict=True)]
    with contextlib.ExitStack() as stack:
        came = _came(wanted, stack)
        try:
            yield came
        except VoxtileError as error:
            said = came.in_words(str(error))
            if said == str(error):
                raise
            raise type(error)(said) from None


def _came(items: Sequence[Any], stack: contextlib.ExitStack) -> AtHand:
    """Fetches what is in a PACS, each series once; `stack` removes it."""
    folders: dict[tuple[Address, Wanted], Path] = {}
    names: dict[str, str] = {}
    warnings: list[str] = []
    image: list[Any] = []
    for item in items:
        if not isinstance(item, PacsScan):
            image.append(item)
            continue
        place = item.place
        if place not in folders:
            one = stack.enter_context(fetched(*place, item.access))
            folders[place] = one.folder
            names[str(one.folder)] = f"{place[0].name}, scan {len(folders)}" if len(items) > 1 else place[0].name
            warnings += one.warnings
        image.append(folders[place])
    return AtHand(image, tuple(warnings), names)


def _pacs_scan(item: Any) -> Any:
    """An address as a PacsScan; whatever else as it is."""
    return PacsScan(item) if isinstance(item, str) and looks_like_address(item) else item


def _narrowed(item: Any, choice: SeriesChoice) -> Any:
    """A scan in a PACS of which only the series is fetched that is named by its UID."""
    if not isinstance(item, PacsScan) or not choice.series:
        return item
    uid = choice.series[0].strip().partition(":")[0]
    if not is_uid(uid):
        return item
    if item.series is not None and item.series != uid:
        raise InputError(f"{item.place[0].name}: expected one series, found two: its own and one chosen beside it")
    return replace(item, series=uid)
