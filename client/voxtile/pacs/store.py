"""Stores DICOM objects in a PACS, each once however often it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from voxtile.errors import VoxtileError
from voxtile.pacs.access import Access
from voxtile.pacs.address import Address
from voxtile.pacs.base import Object, Pacs, object_of
from voxtile.pacs.patience import patiently
from voxtile.pacs.reach import connected


@dataclass(frozen=True)
class Kept:
    """What a PACS has now. Attributes: stored: files that it was sent; there: files that it had already."""

    stored: tuple[Path, ...]
    there: tuple[Path, ...]


def check_reachable(address: Address, access: Access) -> None:
    """Checks, before any work, that a PACS answers and lets this program in.

    Raises:
        ServerUnavailable: it does not.
        InputError: what `access` holds cannot be used there.
    """
    with connected(address, access) as pacs:
        patiently(pacs.check, access.pauses_s)


def store(files: Sequence[Path], address: Address, access: Access) -> Kept:
    """Stores objects. One whose UID the PACS has already is not sent again.

    Raises:
        InputError: a file is no object that can be stored; nothing is sent.
        OutputError: the PACS does not take one; the message says how many it has taken before.
        ServerUnavailable: the PACS does not answer, or refuses access.
    """
    objects = [object_of(file) for file in files]
    stored: list[Path] = []
    there: list[Path] = []
    with connected(address, access) as pacs:
        for one in objects:
            try:
                sent = _put(pacs, one, access.pauses_s)
            except VoxtileError as error:
                done = len(stored) + len(there)
                raise type(error)(f"{error}; {one.file.name} is not stored, {done} of {len(objects)} are") from None
            (stored if sent else there).append(one.file)
    return Kept(tuple(stored), tuple(there))


def _put(pacs: Pacs, one: Object, pauses_s: Sequence[float]) -> bool:
    """Whether the object was sent; where a try fails after the PACS has taken it, the next one finds it there."""
    sent = False

    def attempt() -> bool:
        nonlocal sent
        if pacs.holds(one):
            return sent
        sent = True
        pacs.store(one)
        return True

    return patiently(attempt, pauses_s)
