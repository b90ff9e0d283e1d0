"""Keeps the files of cases at an address, in the layout of a folder on this machine.

A case's files are written into the spool, then sent. Before the first is sent, its record says what will come; after
the last, what the store says that it has. So a case whose sending was cut off is unfinished, and what is there of it is
known for its own. Lines are sent in objects of a name that no other process has. Knows nothing of how a case is made.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from voxtile.batch.cohort.journal import LINES, SHARDS, SHARE
from voxtile.batch.cohort.remote_scans import Remote
from voxtile.batch.cohort.shard import Shard
from voxtile.batch.place import Place
from voxtile.batch.record import CLAIM, RECORDS, CaseRecord, Records
from voxtile.errors import InputError, OutputError
from voxtile.places.address import Address
from voxtile.places.systems import Found

MASKS = "place"
"""The folder of the spool in which files are written before they are sent."""

SMALL_BYTES = 256 << 20
"""Of a file of records or lines; the lines of 100,000 cases have less."""

LINES_BYTES = 64 << 10
"""From so many bytes on, lines go on in a new object: an object cannot be appended to, only sent again."""


class RemotePlace(Place):
    """A folder at an address.

    Args:
        address: the folder.
        remote: the store, and the spool.
        shard: the shard of this process.

    Attributes:
        store: the store.
        folder: the folder of the spool that stands for it.
        found: what the store says of each file of it, by its name relative to it.
        records: its records.

    Raises:
        OutputError: it cannot be written to, being of the web, or cannot be listed.
        ServerUnavailable: nobody answers.
    """

    def __init__(self, address: Address, remote: Remote, shard: Shard | None = None) -> None:
        check_can_be_written(address)
        self.address, self._remote, self.store = address, remote, remote.store
        try:
            self.found = self.store.content(address)
        except InputError as error:
            raise OutputError(str(error)) from None
        self.folder = remote.spool.folder / MASKS
        self.folder.mkdir(mode=0o700)
        remote.stands_for(self.folder, address)
        self.records = RemoteRecords(self)
        self._sums: dict[str, str] = {}
        self._lines = b""
        self._lines_name = f"{shard.index}-of-{shard.count}.{secrets.token_hex(6)}" if shard else ""
        self._lines_number = 0

    def begin(self, cases: Sequence[str]) -> None:
        """Fetches what earlier runs have recorded: of the folder, of the lines of all shards, and of these cases."""
        lines = [name for name in self.found if name.startswith(f"{RECORDS}/{SHARDS}/")]
        self.fetch([CLAIM, *(name for name in lines if name.endswith((LINES, SHARE)))])
        self.records.fetch(cases)

    def fetch(self, names: Sequence[str]) -> None:
        """Fetches small files into the folder of the spool, those that are there. Raises VoxtileError."""
        there = [name for name in names if name in self.found]
        contents = self.store.read_all([self.address / name for name in there], SMALL_BYTES)
        for name, data in zip(there, contents, strict=True):
            file = self.folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)

    def take(self, path: Path) -> None:
        name = self.name_of(path)
        self.found[name] = self.store.write(path.read_bytes(), self.address / name)

    def checksum(self, case: str, suffix: str, path: Path) -> str | None:
        name = self.name_of(path)
        found = self.found.get(name)
        if found is None:
            return None
        if name not in self._sums:
            record = self.records.read(case)
            stored = record is not None and (record.stored or {}).get(suffix)
            if record is not None and stored and stored == found.state:
                self._sums[name] = record.files.get(suffix, "")
            else:
                self._sums[name] = self.store.checksum(self.address / name)
                if (
                    record is not None and record.files.get(suffix) == self._sums[name]
                ):  # it was not recorded to its end
                    record.stored = (record.stored or {}) | {suffix: found.state}
                    self.records.send(case, record)
        return self._sums[name]

    def check_replaceable(self, path: Path) -> None:
        """Nothing that lies there is protected from being replaced by its name alone."""

    def keep(self, case: str, files: Mapping[str, Path]) -> None:
        written = {suffix: path for suffix, path in files.items() if path.exists()}
        record = self.records.read(case)
        assert record is not None or not written, "a file is recorded before it gets its name"
        if record is None:
            return
        try:
            record.stored = {suffix: state for suffix, state in (record.stored or {}).items() if suffix not in written}
            self.records.send(case, record)
            for suffix, path in written.items():
                found = self._send(path)
                record.stored[suffix] = found.state
            self.records.send(case, record)
        finally:
            for path in written.values():
                path.unlink(missing_ok=True)

    def _send(self, path: Path) -> Found:
        name = self.name_of(path)
        self._sums.pop(name, None)
        self.found[name] = found = self.store.send(path, self.address / name)
        return found

    def keep_lines(self, text: bytes) -> None:
        lines = self._lines + text
        name = f"{RECORDS}/{SHARDS}/{self._lines_name}.{self._lines_number:06d}{LINES}"
        self.store.write(lines, self.address / name)
        self._lines = lines
        if len(lines) > LINES_BYTES:
            self._lines, self._lines_number = b"", self._lines_number + 1

    def in_words(self, text: str) -> str:
        return self._remote.in_words(text)

    def name_of(self, path: Path) -> str:
        """The name of a file of the spool's folder, relative to it."""
        return path.relative_to(self.folder).as_posix()


class RemoteRecords(Records):
    """The records of a folder at an address: read at once, and sent when a case is kept.

    Args:
        place: the folder.
    """

    def __init__(self, place: RemotePlace) -> None:
        super().__init__(place.folder)
        self._place = place
        self._known: dict[str, CaseRecord | None] = {}

    def fetch(self, cases: Sequence[str]) -> None:
        """Reads the records of many cases. Raises VoxtileError."""
        there = [case for case in cases if _name(case) in self._place.found]
        addresses = [self._place.address / _name(case) for case in there]
        contents = self._place.store.read_all(addresses, SMALL_BYTES)
        self._known |= {case: _parsed(data) for case, data in zip(there, contents, strict=True)}

    def read(self, case: str) -> CaseRecord | None:
        return self._known.get(case)

    def write(self, case: str, record: CaseRecord) -> None:
        before, record = self._known.get(case), record.model_copy(deep=True)
        if before is not None and before.stored is not None:
            same = {suffix for suffix, known in record.files.items() if before.files.get(suffix) == known}
            record.stored = {suffix: state for suffix, state in before.stored.items() if suffix in same}
        self._known[case] = record

    def send(self, case: str, record: CaseRecord) -> None:
        """Writes a record where it lies. Raises OutputError or ServerUnavailable."""
        text = record.model_dump_json(indent=2, exclude_none=True) + "\n"
        place = self._place
        place.found[_name(case)] = place.store.write(
            text.encode("utf-8", "backslashreplace"), place.address / _name(case)
        )
        self._known[case] = record

    def cases(self) -> Iterator[str]:
        inside = f"{RECORDS}/"
        for name in sorted(self._place.found):
            if name.startswith(inside) and name.endswith(".json") and "/." not in name:
                yield name.removeprefix(inside).removesuffix(".json")


def check_can_be_written(address: Address) -> None:
    """Raises OutputError for a place that can only be read, or whose name can be spelled otherwise."""
    if address.is_web:
        raise OutputError(
            f"{address}: expected a place to write masks to (a folder, s3:// or gs://), found one of the web, which is "
            "only read; choose another"
        )
    if any(part in ("", ".", "..") for part in address.path.split("/")):
        raise OutputError(f"{address}: expected a folder for masks without //, . and .. in its name; name it so")


def _name(case: str) -> str:
    return f"{RECORDS}/{case}.json"


def _parsed(data: bytes) -> CaseRecord | None:
    try:
        return CaseRecord.model_validate_json(data)
    except ValidationError:
        return None
