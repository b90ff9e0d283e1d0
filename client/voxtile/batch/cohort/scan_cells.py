"""Says which file of a scan a cell of a manifest names: one of this machine, or one at an address.

Knows nothing of cases.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from voxtile.batch.cohort.remote_scans import Remote
from voxtile.batch.remote_scan import RemoteScan
from voxtile.errors import InputError
from voxtile.io.formats.all import PART_SUFFIXES, SUFFIXES, is_scan
from voxtile.io.formats.base import ends_in
from voxtile.io.formats.pair import header_beside
from voxtile.places.address import Address, is_address, parse_address


@dataclass(frozen=True)
class ScanCells:
    """How the cells of a manifest's files are read.

    Attributes:
        folder: that of the manifest.
        remote: reads what lies at addresses; None where nothing may.
    """

    folder: Path | Address
    remote: Remote | None = None

    def look_up(self, cells: Iterable[str]) -> None:
        """Asks for all files at addresses at once. Raises ServerUnavailable or MissingExtraError."""
        addresses = []
        for cell in cells:
            try:
                where = self._where(cell)
            except InputError:
                continue  # told with its row
            if isinstance(where, Address):
                addresses.append(where)
        if self.remote is not None and addresses:
            self.remote.look_up(addresses)

    def file_of(self, cell: str) -> Path | RemoteScan:
        """The file of a cell. Raises InputError where it is no scan's."""
        where = self._where(cell)
        if isinstance(where, Path):
            return _checked(where, cell)
        assert self.remote is not None, "without it an address is refused"
        return self.remote.scan(where)

    def _where(self, cell: str) -> Path | Address:
        if not cell:
            raise InputError("expected a file for each channel, found an empty cell")
        if is_address(cell):
            if self.remote is None:
                raise InputError(f"expected a file, found an address: {cell!r}; copy the scan to this machine first")
            return parse_address(cell)
        if isinstance(self.folder, Address) and cell.startswith("/"):
            return Path(cell)
        return self.folder / cell


def _checked(file: Path, cell: str) -> Path:
    try:
        mode = file.stat().st_mode
    except OSError as error:
        reason = "nothing" if isinstance(error, FileNotFoundError) else error.strerror or str(error)
        spaces = "; mind the space at its end" if cell != cell.strip() else ""
        raise InputError(f"{file}: expected a scan, found {reason}{spaces}") from None
    if stat.S_ISDIR(mode):
        raise InputError(f"{file}: expected the file of a scan, found a folder; DICOM is for voxtile dicom")
    if not stat.S_ISREG(mode):
        raise InputError(f"{file}: expected the file of a scan, found a device or a pipe")
    if not is_scan(file) and not (ends_in(file.name, PART_SUFFIXES) and header_beside(file)):
        raise InputError(
            f"{file}: expected the file of a scan ({', '.join(SUFFIXES)}), found another; convert it to NIfTI"
        )
    return file
