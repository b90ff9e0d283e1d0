"""Writes one line of JSON for each case of a shard, each durable once it is written, and reads the lines of all shards.

A process writes to a file that no other one has open. A line that was cut off is no line. Knows nothing of scans.
"""

from __future__ import annotations

import fcntl
import io
import os
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from voxtile.batch.cases import MASK_SUFFIX, CaseFiles
from voxtile.batch.cohort.manifest import Manifest
from voxtile.batch.cohort.shard import Shard
from voxtile.batch.record import RECORDS, Claim
from voxtile.batch.summary import Outcome
from voxtile.batch.sums import sha256_of
from voxtile.errors import OutputError
from voxtile.io.atomic import cannot_be
from voxtile.outputs.passport import UsedModel
from voxtile.outputs.report import Seconds, write_text

SHARDS = "shards"
"""The folder of the lines, in that of records. The files of records end otherwise."""

LINES, SHARE = ".jsonl", ".share"
"""Endings: of the lines of a shard, and of the file that says which cases are its own."""

LOST_SERVERS = ("ServerUnavailable", "NoResponseError", "AccessError", "DiskFullError")
"""Errors that are not the case's own: it counts as not tried."""


class Line(BaseModel):
    """What became of one case.

    Attributes:
        case: its name.
        status: whether its mask is there.
        attempt: how often it has been worked on, this time included; the line of the last one counts.
        time: when, in UTC.
        shard: by which shard.
        error: why it failed.
        error_kind: the name of the error.
        output: its mask, relative to the folder for masks; empty where there is none.
        output_sha256: the checksum of the mask's file.
        scan_sha256: the checksums of the scan's files; empty for one that could not be read.
        seconds: the seconds of each step.
        ml: millilitres of each label.
        made_by: the model that made the mask, with version, engine and certificate.
        made_with: the digest of the model's build and of the options.
    """

    case: str
    status: Literal["done", "failed"]
    attempt: int
    time: str
    shard: str
    error: str = ""
    error_kind: str = ""
    output: str = ""
    output_sha256: str = ""
    scan_sha256: list[str] = []
    seconds: Seconds = Seconds()
    ml: dict[str, float] = {}
    made_by: UsedModel | None = None
    made_with: str = ""

    @property
    def order(self) -> tuple[int, str]:
        """Of two lines about one case, the larger one counts, whatever the clocks of their machines say."""
        return self.attempt, self.time


class Share(BaseModel):
    """Which cases of a manifest are those of one shard.

    Attributes:
        manifest: the manifest's file.
        manifest_sha256: its checksum.
        total: how many cases it has.
        time: when the shard began, in UTC.
        cases: the cases of the shard by their place in the manifest.
    """

    manifest: str
    manifest_sha256: str
    total: int
    time: str
    cases: dict[int, str]


class Journal:
    """The lines of one shard. A `Log`, and a context manager, which closes the file.

    Args:
        place: the folder for masks.
        shard: the shard.
        manifest: the manifest.
        claim: what makes the masks.

    Raises:
        OutputError: the file cannot be written, or another process has it open.
    """

    def __init__(self, place: Path, shard: Shard, manifest: Manifest, claim: Claim) -> None:
        self._place, self._shard, self._claim = place, shard, claim
        self._cases = {case.name: case for case in shard.of(manifest.cases)}
        self.earlier, _ = read_lines(place)
        self._settled: dict[str, Outcome] = {}
        self._lock = threading.Lock()
        self._unwritten: list[Line] = []
        self.waiting = False
        self._file = _open(place, shard)
        try:
            claim.place.take(_write_share(place, shard, manifest))
        except BaseException:
            self._file.close()
            raise

    def settle(self, known: Mapping[str, Outcome]) -> None:
        """Takes outcomes that are known before any work; what lines say already is not written again."""
        self._settled = dict(known)

    def note(self, outcome: Outcome) -> None:
        """Takes the outcome of a case."""
        if outcome.status == "not tried" or outcome.error_kind in LOST_SERVERS:
            return
        line, last = self._line(outcome), self.earlier.get(outcome.case)
        if outcome.case in self._settled and last is not None and _same(line, last):
            return
        with self._lock:
            self._unwritten.append(line)

    def write(self) -> None:
        """Writes the lines that are not written yet, onto the disk. Raises OutputError or ServerUnavailable."""
        self.waiting = False
        with self._lock:
            if not self._unwritten:
                return
            text = "".join(f"{line.model_dump_json()}\n" for line in self._unwritten).encode(
                "utf-8", "backslashreplace"
            )
            self._claim.place.keep_lines(text)
            try:
                _append(self._file, text)
            except OSError as error:
                raise cannot_be("written", self._place / RECORDS / SHARDS, error) from None
            self._unwritten = []

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _line(self, outcome: Outcome) -> Line:
        case, last = self._cases[outcome.case], self.earlier.get(outcome.case)
        line = Line(
            case=outcome.case,
            status="failed" if outcome.status == "failed" else "done",
            attempt=1 + (last.attempt if last else 0),
            time=_now(),
            shard=str(self._shard),
            error=outcome.error.encode("utf-8", "backslashreplace").decode(),
            error_kind=outcome.error_kind,
            ml=outcome.ml,
            made_with=self._claim.digest(case.options),
        )
        record = self._claim.records.read(outcome.case) if outcome.status != "failed" or outcome.ml else None
        if record is None:
            return line.model_copy(update={"scan_sha256": checksums(case)})
        return line.model_copy(
            update={
                "output": case.mask.relative_to(self._place).as_posix(),
                "output_sha256": record.files.get(MASK_SUFFIX, ""),
                "scan_sha256": [scan.sha256 for scan in record.scans],
                "seconds": record.steps or Seconds(total=record.seconds),
                "made_by": record.made_by,
            }
        )


def checksums(case: CaseFiles) -> list[str]:
    """The checksums of the scan's files; empty for one that cannot be read; at an address, what the store says."""
    return [case.remote[file].state if file in case.remote else _checksum(file) for file in case.all_files]


def read_lines(place: Path) -> tuple[dict[str, Line], int]:
    """Reads the lines of all shards.

    Returns:
        The line that counts for each case, and how many lines were cut off.
    """
    found: dict[str, Line] = {}
    cut_off = 0
    for file in sorted(_folder(place).glob(f"*{LINES}")):
        for text in _lines_of(file):
            try:
                line = Line.model_validate_json(text)
            except ValidationError:
                cut_off += 1
                continue
            if line.case not in found or found[line.case].order <= line.order:
                found[line.case] = line
    return found, cut_off


def read_shares(place: Path) -> list[Share]:
    """The shares of all shards; of a manifest that was changed, those of its last form."""
    shares = []
    for file in sorted(_folder(place).glob(f"*{SHARE}")):
        try:
            shares.append(Share.model_validate_json(file.read_bytes()))
        except (OSError, ValidationError):
            continue
    last: dict[str, Share] = {}
    for share in sorted(shares, key=lambda share: share.time):
        last[share.manifest] = share
    return [share for share in shares if share.manifest_sha256 == last[share.manifest].manifest_sha256]


def _lines_of(file: Path) -> Iterator[bytes]:
    try:
        yield from (line for line in file.read_bytes().split(b"\n") if line.strip())
    except OSError as error:
        raise OutputError(f"{file}: cannot be read ({error.strerror or error})") from None


def _folder(place: Path) -> Path:
    return place / RECORDS / SHARDS


def _open(place: Path, shard: Shard) -> io.FileIO:
    """Opens the file of a shard for this process alone; where the file system knows no locks, one of a new name."""
    folder, name = _folder(place), f"{shard.index}-of-{shard.count}"
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(folder / f"{name}{LINES}", flags, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            raise OutputError(
                f"{place}: expected no other process on shard {shard}, found one at work; wait for its end, or end it"
            ) from None
        except OSError:
            os.close(file)
            file = os.open(folder / f"{name}.{secrets.token_hex(6)}{LINES}", flags | os.O_EXCL, 0o666)
    except OSError as error:
        raise cannot_be("written", folder, error) from None
    return io.FileIO(file, "ab+")


def _append(file: io.FileIO, text: bytes) -> None:
    """Appends whole lines, and waits for the disk. Raises OSError; what is cut off then is no line."""
    size = os.fstat(file.fileno()).st_size
    if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
        text = b"\n" + text
    while text:
        text = text[file.write(text) :]
    os.fsync(file.fileno())


def _write_share(place: Path, shard: Shard, manifest: Manifest) -> Path:
    places = shard.of(range(len(manifest.cases)))
    share = Share(
        manifest=manifest.where,
        manifest_sha256=manifest.sha256,
        total=len(manifest.cases),
        time=_now(),
        cases={number: manifest.cases[number].name for number in places},
    )
    file = _folder(place) / f"{shard.index}-of-{shard.count}{SHARE}"
    write_text(share.model_dump_json() + "\n", file)
    return file


def _same(line: Line, last: Line) -> bool:
    """Whether a line says nothing that the last one of the case does not say."""
    kept: Sequence[str] = ("status", "error", "output", "output_sha256", "scan_sha256", "made_with")
    return all(getattr(line, name) == getattr(last, name) for name in kept)


def _checksum(file: Path) -> str:
    try:
        return sha256_of(file)
    except OSError:
        return ""


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="microseconds")
