"""One file of a scan that lies at an address: in a spool on this machine for as long as it is read.

Knows nothing of cases.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from voxtile.batch.record import ScanFile
from voxtile.batch.sums import sha256_of
from voxtile.errors import InputError
from voxtile.places.address import Address
from voxtile.places.spool import Spool
from voxtile.places.store import Store
from voxtile.places.systems import Found


@dataclass(frozen=True)
class RemoteScan:
    """A file of a scan.

    Attributes:
        address: where it lies.
        file: where it gets in the spool.
        found: what the store said of it when the run began.
        store: what reads it.
        spool: the spool.
        here: where it would lie in the folder for masks, where that stands for the folder that it lies in.
    """

    address: Address
    file: Path
    found: Found
    store: Store
    spool: Spool
    here: Path | None = None

    @property
    def state(self) -> str:
        """What the store said of it, for a case of which the content is not known."""
        return self.found.state

    @contextlib.contextmanager
    def at_hand(self) -> Iterator[ScanFile]:
        """Fetches it for the block; gives what is recorded of it.

        Raises:
            VoxtileError: it cannot be fetched.
        """
        try:
            found = self.store.fetch(self.address, self.file, self.spool)
            yield ScanFile(
                uri=str(self.address),
                size=self.file.stat().st_size,
                mtime_ns=0,
                ctime_ns=0,
                sha256=sha256_of(self.file),
                state=found.state,
            )
        finally:
            with contextlib.suppress(OSError):
                self.file.unlink()
                self.file.parent.rmdir()

    def is_still(self, scan: ScanFile) -> bool:
        """Whether it has the content that was read; its content is looked at only where the store says otherwise.

        Raises:
            ServerUnavailable: nobody answers.
        """
        if self.found.state and self.found.state == scan.state:
            return True
        if self.found.size is not None and self.found.size != scan.size:
            return False
        try:
            return self.store.checksum(self.address) == scan.sha256
        except InputError:
            return False  # its reader says what is wrong with it
