"""Records what a batch has written: which model fills the folder, and for each case which scan gave which files.

A mask is finished if a record holds its checksum and the scan, not because a file of its name exists. So a half-copied
mask, one that was edited by hand, and one that something else made are recognised. A record is written before its files
take their names, so that a run may be killed at any moment. Knows nothing of how masks are made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from voxtile.batch.place import HERE, Place
from voxtile.batch.sums import sha256_of
from voxtile.errors import OutputError
from voxtile.io.atomic import cannot_be
from voxtile.outputs.passport import UsedModel
from voxtile.outputs.report import Seconds, write_text
from voxtile.triton.types import ServedModel

CLAIM = "voxtile-batch.json"
RECORDS = ".voxtile-batch"
"""The folder of records, in the folder of masks."""

MIXED = "mixed"
"""In the claim of a folder that several models, builds or options have filled."""


class ScanFile(BaseModel):
    """One file of a scan, as it was read.

    Attributes:
        uri: where it lies, as a file: URI, which says every name exactly; or its address.
        size: its bytes.
        mtime_ns: when its content was changed.
        ctime_ns: when anything of it was changed.
        sha256: the checksum of its content.
        state: of one that lies at an address, what the store said of it, in place of the times; None for one on this
            machine.
    """

    uri: str
    size: int
    mtime_ns: int
    ctime_ns: int
    sha256: str
    state: str | None = None

    def is_still(self, path: Path) -> bool:
        """Whether `path` has the content that was read; its content is looked at only where its times have changed."""
        found = path.stat()
        if (found.st_size, found.st_mtime_ns, found.st_ctime_ns) == (self.size, self.mtime_ns, self.ctime_ns):
            return True
        return found.st_size == self.size and sha256_of(path) == self.sha256


class CaseRecord(BaseModel):
    """What is known of a finished case.

    Attributes:
        scans: its scan, a file for each channel.
        files: the checksum of each file that was written, by the ending of its name.
        replaced: the checksum of each file that it replaced, which is there still if the run was killed just then.
        stored: what the store said of each file once it had it, where files are kept at an address; None
            elsewhere.
        seconds: the seconds that it took, writing left out.
        ml: millilitres of each label.
        steps: the seconds of each step; it is None, as are the next two, where the claim of the folder says enough.
        made_by: the model.
        made_with: the digest of the model's build and of the options; see `Claim`.
    """

    scans: list[ScanFile]
    files: dict[str, str] = {}
    replaced: dict[str, str] = {}
    stored: dict[str, str] | None = None
    seconds: float = 0.0
    ml: dict[str, float] = {}
    steps: Seconds | None = None
    made_by: UsedModel | None = None
    made_with: str | None = None

    def wrote(self, suffix: str, sha256: str) -> bool:
        """Whether a file with this ending and checksum is one that a run has written for this case."""
        return sha256 in (self.files.get(suffix), self.replaced.get(suffix))


class Records:
    """The records in a folder of masks.

    Args:
        outputs: the folder of masks.
    """

    def __init__(self, outputs: Path) -> None:
        self._folder = outputs / RECORDS

    def read(self, case: str) -> CaseRecord | None:
        """The record of a case; None where there is none that can be read."""
        try:
            return CaseRecord.model_validate_json(self._file(case).read_bytes())
        except (OSError, ValidationError):
            return None

    def write(self, case: str, record: CaseRecord) -> None:
        """Writes a record, whole or not at all. Raises OutputError."""
        file = self._file(case)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_be("made", file.parent, error) from None
        write_text(record.model_dump_json(indent=2, exclude_none=True) + "\n", file)

    def cases(self) -> Iterator[str]:
        """The names of all cases that have a record, in order."""
        for file in sorted(self._folder.rglob("*.json")):
            if not file.name.startswith("."):
                yield str(file.relative_to(self._folder)).removesuffix(".json")

    def _file(self, case: str) -> Path:
        return self._folder / f"{case}.json"


@dataclass(frozen=True)
class Claim:
    """What fills a folder of masks: a model in one build, with some options.

    Attributes:
        records: the records of the cases in the folder.
        own: model, build and options.
        is_mixed: whether something else has filled the folder before, so that a record must say what made its mask.
        is_told_by_case: whether every record says what made its mask, and how long it took.
        place: what keeps the files.
    """

    records: Records
    own: dict[str, Any]
    is_mixed: bool
    is_told_by_case: bool
    place: Place = HERE

    def digest(self, options: str = "") -> str:
        """The digest of model, build and options; `options` are those of one case alone."""
        said = {**self.own, "case": options} if options else self.own
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    def made(self, record: CaseRecord, options: str = "") -> bool:
        """Whether the mask of a record was made with this model, build and options."""
        if record.made_with is None:
            return not self.is_mixed and not options
        return record.made_with == self.digest(options)


def claim_folder(
    outputs: Path,
    model: ServedModel,
    changes: Sequence[str],
    *,
    take_over: bool = False,
    records: Records | None = None,
    place: Place = HERE,
) -> Claim:
    """Makes the folder, and records the model in it.

    Args:
        outputs: the folder for masks.
        model: the model that fills it.
        changes: what is done otherwise than by the model's own semantics, in words.
        take_over: whether another model, another build or other options may have begun to fill it; their masks are then
            told apart by their records.
        records: the records of the folder, where they are kept elsewhere.
        place: what keeps the files.

    Raises:
        OutputError: it cannot be written, or something else has begun to fill it and `take_over` is false.
    """
    digest = hashlib.sha256(model.card_text.encode()).hexdigest()
    own = {"model": model.card.name, "card_sha256": digest, "changes": list(changes)}
    claim, records = outputs / CLAIM, records or Records(outputs)
    try:
        outputs.mkdir(parents=True, exist_ok=True)
        found = json.loads(claim.read_text(encoding="utf-8")) if claim.exists() else None
    except (OSError, ValueError, RecursionError) as error:
        raise OutputError(f"{outputs}: expected a folder to write masks to ({error})") from None
    is_mixed = isinstance(found, dict) and bool(found.pop(MIXED, False))
    if found != own and found is not None and next(records.cases(), None) is not None:
        if not take_over:
            by = found.get("model") if isinstance(found, dict) else found
            raise OutputError(
                f"{outputs}: holds masks by {by!r} of another build or with other options; "
                "choose another folder, or empty this one; an earlier version of the model goes on as --model "
                "NAME@VERSION, where the server has it still"
            )
        is_mixed = True
    write_text(json.dumps(own | ({MIXED: True} if is_mixed else {}), indent=2) + "\n", claim)
    return Claim(records, own, is_mixed, is_told_by_case=is_mixed or take_over, place=place)


def scan_file(path: Path) -> ScanFile:
    """What is recorded of a file that was just read. Raises OSError."""
    found = path.stat()
    return ScanFile(
        uri=uri_of(path),
        size=found.st_size,
        mtime_ns=found.st_mtime_ns,
        ctime_ns=found.st_ctime_ns,
        sha256=sha256_of(path),
    )


def uri_of(path: Path) -> str:
    """Where a file lies, as a URI: the folder without links, so that one place has one spelling."""
    return (path.parent.resolve() / path.name).as_uri()
