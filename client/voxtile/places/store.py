"""Looks up, lists, reads, fetches and writes files at addresses. A file is there whole, or it is not there.

What is written is compared with what the store says that it has. Credentials and endpoints are those that the libraries
find: variables of the environment and files. Knows nothing of scans.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from voxtile.errors import InputError, OutputError, ServerUnavailable, VoxtileError
from voxtile.extras import require
from voxtile.io.atomic import is_full
from voxtile.places.address import Address
from voxtile.places.faults import fault, may_pass
from voxtile.places.spool import Spool, Stopped
from voxtile.places.systems import NEEDS, Found, found_of, location_of, system_for, watched_by

TRIES = 3
"""How often a transfer that was cut off is begun; the libraries repeat requests by themselves too."""

PAUSE_S = 0.5
AT_ONCE = 16
"""Requests at the same time."""

WORTH_LISTING = 8
"""From so many files of one folder on, one listing of it takes fewer requests than asking for each."""

READ_BYTES = 1 << 20

Result = TypeVar("Result")


class Store:
    """All files at addresses. Several threads may use it.

    Attributes:
        lost: the error of a server that does not answer; another one once the work has begun.
    """

    def __init__(self) -> None:
        self._systems: dict[str, Any] = {}
        self.lost: type[ServerUnavailable] = ServerUnavailable

    def look_up(self, address: Address) -> Found:
        """What the store says of a file. Raises VoxtileError: there is none, or nobody answers."""
        said = self._asked(address, lambda system: system.info(location_of(address)))
        if said.get("type") == "directory":
            raise InputError(f"{address}: expected a file, found a folder")
        return found_of(said)

    def look_up_all(self, addresses: Iterable[Address]) -> dict[Address, Found | InputError]:
        """What the store says of each of many files, and of those that are not there why not.

        Raises:
            ServerUnavailable: nobody answers, or access is refused to everything.
            MissingExtraError: what reads a scheme is not installed.
        """
        folders: dict[Address, list[Address]] = {}
        for address in dict.fromkeys(addresses):
            folders.setdefault(address if address.is_web else address.parent, []).append(address)
        results: dict[Address, Found | InputError] = {}
        alone: list[Address] = []
        for folder, files in folders.items():
            listed = self._listed(folder) if len(files) >= WORTH_LISTING else {}
            for file in files:
                if file.name in listed:
                    results[file] = listed[file.name]
                else:
                    alone.append(file)  # a folder that may not be listed may still be read
        for file, result in zip(alone, self._at_once(self._found_or_not, alone), strict=True):
            results[file] = result
        return results

    def content(self, folder: Address) -> dict[str, Found]:
        """All files below a folder, at any depth, by their names relative to it.

        Raises:
            InputError: it cannot be listed.
            ServerUnavailable: nobody answers.
        """
        if folder.is_web:
            raise InputError(
                f"{folder}: expected a folder that can be listed (s3://, gs://), found one of the web; name its files "
                "in a manifest"
            )
        return self._asked(folder, lambda system: self._files_of(system, folder, None))

    def read(self, address: Address, most: int) -> bytes:
        """The content of a small file.

        Raises:
            VoxtileError: it is not there, is larger than `most` bytes, or nobody answers.
        """
        size = self.look_up(address).size
        if size is not None and size > most:
            raise InputError(
                f"{address}: expected at most {most >> 20} MiB, found {size >> 20} MiB; is it another file?"
            )
        data: bytes = self._asked(address, lambda system: system.cat_file(location_of(address)))
        if size is not None and len(data) != size:
            raise InputError(f"{address}: expected {size} bytes, found {len(data)}: it was cut off or has changed")
        return data

    def first_bytes(self, address: Address, count: int) -> bytes:
        """The first bytes of a file, `count` at most. Raises VoxtileError."""
        first: bytes = self._asked(address, lambda system: system.cat_file(location_of(address), start=0, end=count))
        return first

    def read_all(self, addresses: Sequence[Address], most: int) -> list[bytes]:
        """The content of each of many small files; raises as `read` does."""
        return self._at_once(lambda address: self.read(address, most), addresses)

    def fetch(self, address: Address, file: Path, spool: Spool) -> Found:
        """Copies a file into a spool.

        Args:
            address: the file.
            file: where in the spool it gets.
            spool: the spool; once it is stopped, so is this.

        Returns:
            What the store says of it.

        Raises:
            InputError: it is not there, not all of it came, or it was changed meanwhile.
            OutputError: there is no room for it on this machine.
            ServerUnavailable: nobody answers.
            Stopped: by the spool.
        """
        with spool.at_work():
            found = self.look_up(address)
            _check_room(found, address, spool)
            try:
                file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._asked(
                    address, lambda system: system.get_file(location_of(address), str(file), callback=watched_by(spool))
                )
                came = file.stat().st_size
            except OSError as error:
                raise OutputError(f"{file}: cannot be written ({error.strerror or error}); set TMPDIR") from None
            if found.size is not None and came != found.size:
                raise InputError(
                    f"{address}: expected {found.size} bytes, found {came}: the download was cut off, or the file has "
                    "changed; run again"
                )
            if self.look_up(address).state != found.state:
                raise InputError(f"{address}: was changed while it was fetched; is it being copied? Run again")
            return found

    def checksum(self, address: Address) -> str:
        """The SHA-256 of a file's content, which is read once and not kept. Raises VoxtileError."""

        def summed(system: Any) -> str:
            digest = hashlib.sha256()
            with system.open(location_of(address), "rb", cache_type="readahead", block_size=READ_BYTES * 5) as file:
                while piece := file.read(READ_BYTES):
                    digest.update(piece)
            return digest.hexdigest()

        return self._asked(address, summed)

    def send(self, file: Path, address: Address) -> Found:
        """Writes a file of this machine to an address, in place of what is there.

        Returns:
            What the store says of it.

        Raises:
            OutputError: it cannot be written, or is not what was sent.
            ServerUnavailable: nobody answers.
        """
        _check_target(address)
        self._asked(address, lambda system: system.put_file(str(file), location_of(address)), writing=True)
        return self._verified(address, file.stat().st_size, lambda kind: _digest_of(file, kind))

    def write(self, data: bytes, address: Address) -> Found:
        """Writes bytes to an address as `send` does."""
        _check_target(address)
        self._asked(address, lambda system: system.pipe_file(location_of(address), data), writing=True)
        return self._verified(
            address, len(data), lambda kind: hashlib.new(kind, data, usedforsecurity=False).hexdigest()
        )

    def _verified(self, address: Address, size: int, digest: Callable[[str], str]) -> Found:
        """What the store says of a file that was sent. Raises OutputError where it is another."""
        try:
            found = self.look_up(address)
        except InputError as error:
            raise OutputError(f"{error} (it was just sent there)") from None
        same = found.size == size
        if same and found.md5 != digest("md5"):  # of parts, or encrypted: then the tag is no checksum
            same = self.checksum(address) == digest("sha256")
        if not same:
            raise OutputError(f"{address}: expected the {size} bytes that were sent, found others there; run again")
        return found

    def _found_or_not(self, address: Address) -> Found | InputError:
        try:
            return self.look_up(address)
        except InputError as error:
            return error

    def _listed(self, folder: Address) -> dict[str, Found]:
        """The files of a folder itself; none where it may not be listed."""
        try:
            return self._asked(folder, lambda system: self._files_of(system, folder, 1))
        except InputError:
            return {}

    def _files_of(self, system: Any, folder: Address, depth: int | None) -> dict[str, Found]:
        base = f"{folder.path}/"
        content = system.find(base, maxdepth=depth, detail=True)
        if not content:
            system.ls(folder.root)  # says whether there is such a bucket
        return {path.removeprefix(base): found_of(said) for path, said in content.items() if path.startswith(base)}

    def _at_once(self, ask: Callable[[Address], Result], addresses: Sequence[Address]) -> list[Result]:
        if len(addresses) < 2:
            return [ask(address) for address in addresses]
        with ThreadPoolExecutor(min(AT_ONCE, len(addresses)), "voxtile-ask") as threads:
            return list(threads.map(ask, addresses))

    def _asked(self, address: Address, ask: Callable[[Any], Result], *, writing: bool = False) -> Result:
        """What a library answers; what was cut off is asked for again. Raises VoxtileError."""
        system = self._system(address)
        for tried in range(1, TRIES + 1):
            try:
                return ask(system)
            except Stopped:
                raise
            except Exception as error:
                if is_full(error):
                    raise
                told = fault(error, address, writing=writing)
                if tried == TRIES or not may_pass(told, address):
                    raise self._as_lost(told) from None
            time.sleep(PAUSE_S * tried)
        raise AssertionError("the last try returns or raises")

    def _as_lost(self, told: VoxtileError) -> VoxtileError:
        return self.lost(str(told)) if type(told) is ServerUnavailable else told

    def _system(self, address: Address) -> Any:
        """What reads a scheme; made at its first use, so that nobody else waits for its import."""
        if address.scheme not in self._systems:
            for module in ("fsspec", NEEDS[address.scheme]):
                require(module, "cloud", str(address))
            self._systems[address.scheme] = system_for(address.scheme)
        return self._systems[address.scheme]


def _check_room(found: Found, address: Address, spool: Spool) -> None:
    free = shutil.disk_usage(spool.folder).free
    if found.size is not None and found.size > free:
        raise OutputError(
            f"{spool.folder}: expected room for the {found.size >> 20} MiB of {address}, found {free >> 20} MiB; set "
            "TMPDIR to another place"
        )


def _check_target(address: Address) -> None:
    if address.is_web:
        raise OutputError(f"{address}: expected a place to write to (a folder, s3:// or gs://), found one of the web")


def _digest_of(file: Path, kind: str) -> str:
    digest = hashlib.new(kind, usedforsecurity=False)
    with file.open("rb") as opened:
        while piece := opened.read(READ_BYTES):
            digest.update(piece)
    return digest.hexdigest()
