"""Fetches a study or a series from a PACS into a folder that is removed afterwards, complete or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from voxtile.pacs.access import Access
from voxtile.pacs.address import Address, Wanted
from voxtile.pacs.base import Pacs
from voxtile.pacs.patience import patiently
from voxtile.pacs.reach import connected
from voxtile.pacs.spool import Spool, spool


@dataclass(frozen=True)
class Fetched:
    """What came. Attributes: folder: where its objects lie; warnings: what a user should know of it."""

    folder: Path
    warnings: tuple[str, ...] = ()


@contextlib.contextmanager
def fetched(address: Address, wanted: Wanted, access: Access) -> Iterator[Fetched]:
    """Fetches a study or a series; its folder is there within the block.

    The objects that came are counted against what the PACS says that it has, before and afterwards: of a series that
    it is still receiving, slices would be missing at an end, which no geometry shows.

    Raises:
        InputError: the PACS does not have it, or not all of it came.
        ServerUnavailable: the PACS does not answer, or refuses access.
        OutputError: it cannot be kept on this machine.
    """
    with spool() as place:
        with connected(address, access) as pacs:
            told = _brought(pacs, wanted, place, access)
        place.check(address, wanted, told)
        unknown = f"{address.name} does not say how many objects it has of the {wanted.name}; some may be missing"
        yield Fetched(place.folder, () if told is not None else (unknown,))


def _brought(pacs: Pacs, wanted: Wanted, place: Spool, access: Access) -> int | None:
    """Fills `place`; returns how many objects the PACS says that it has."""

    def bring() -> None:
        place.clear()
        pacs.fetch(wanted, place)

    before = patiently(lambda: pacs.count(wanted), access.pauses_s)
    patiently(bring, access.pauses_s)
    after = patiently(lambda: pacs.count(wanted), access.pauses_s)
    return max((number for number in (before, after) if number is not None), default=None)
