"""The scans of a manifest that lie at addresses: looked up before any work, each in one place of the spool.

Knows nothing of what is done with a scan.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from voxtile.batch.remote_scan import RemoteScan
from voxtile.errors import InputError, VoxtileError
from voxtile.io.formats.all import SUFFIXES, is_scan
from voxtile.io.formats.base import ends_in
from voxtile.places.address import Address
from voxtile.places.spool import Spool, spool
from voxtile.places.store import Store
from voxtile.places.systems import Found

IN_PARTS = (".hdr", ".hdr.gz", ".img", ".img.gz", ".mhd", ".nhdr")
"""Endings of files that are not all of a scan."""

SCANS = "scans"
DIGITS = 16
"""Of the digest of an address, which names its folder in the spool."""


class Remote:
    """What a run needs of other machines: a store, and a spool, which is made at its first use.

    Attributes:
        store: reads and writes files at addresses.
    """

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.store = Store()
        self._stack = stack
        self._spool: Spool | None = None
        self._found: dict[Address, Found | InputError] = {}
        self._addresses: dict[str, Address] = {}
        self._folders: dict[Path, Address] = {}

    @property
    def spool(self) -> Spool:
        """The spool."""
        if self._spool is None:
            self._spool = self._stack.enter_context(spool())
        return self._spool

    def stands_for(self, folder: Path, address: Address) -> None:
        """Says that a folder of the spool stands for one at an address; messages then name that."""
        self._folders[folder] = address

    def look_up(self, addresses: Iterable[Address]) -> None:
        """Asks for many files at once. Raises ServerUnavailable or MissingExtraError."""
        self._found |= self.store.look_up_all(address for address in addresses if address not in self._found)

    def know(self, found: Mapping[Address, Found]) -> None:
        """Takes what a listing has said of files, which `look_up` does not ask for again."""
        self._found |= found

    def address_of(self, file: Path) -> Address:
        """The address for which a file of the spool stands."""
        folder = next(folder for folder in self._folders if file.is_relative_to(folder))
        return self._folders[folder] / file.relative_to(folder).as_posix()

    def scan(self, address: Address) -> RemoteScan:
        """The file of a scan, which `look_up` has asked for.

        Raises:
            InputError: it is no scan's, or is not there.
        """
        name = Path(address.name)
        if ends_in(address.name, IN_PARTS):
            raise InputError(f"{address}: expected a scan in one file, found one of several; convert it to NIfTI")
        if not is_scan(name):
            raise InputError(
                f"{address}: expected the file of a scan ({', '.join(SUFFIXES)}), found another; convert it to NIfTI"
            )
        found = self._found[address]
        if isinstance(found, InputError):
            raise found
        digest = hashlib.sha256(f"{address}?{address.query}".encode("utf-8", "surrogateescape")).hexdigest()[:DIGITS]
        self._addresses[digest] = address
        inside = ((folder, address.below(home)) for folder, home in self._folders.items())
        here = next((folder / name for folder, name in inside if name is not None), None)
        file = self.spool.folder / SCANS / digest / address.name
        return RemoteScan(address, file, found, self.store, self.spool, here)

    def in_words(self, text: str) -> str:
        """A message in which no file of the spool is named that is gone when it is read."""
        if self._spool is None:
            return text
        for folder, name in self._folders.items():
            text = text.replace(str(folder), str(name))
        scans = str(self.spool.folder / SCANS)
        for digest in re.findall(re.escape(f"{scans}/") + rf"([0-9a-f]{{{DIGITS}}})", text):
            address = self._addresses[digest]
            text = text.replace(f"{scans}/{digest}/{address.name}", str(address)).replace(
                f"{scans}/{digest}", str(address)
            )
        return text


@contextlib.contextmanager
def remote() -> Iterator[Remote]:
    """Gives a `Remote`, whose spool is removed after the block; errors are told in words that hold then too."""
    with contextlib.ExitStack() as stack:
        made = Remote(stack)
        try:
            yield made
        except VoxtileError as error:
            error.args = (made.in_words(str(error)),)
            raise
