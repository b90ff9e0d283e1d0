"""What an examination finds: how bad, what, where, why it will hurt, what to do. Knows no check."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

SCHEMA_VERSION = 1
"""Of the JSON of `voxtile doctor --json`; increased when a reader of the older one would misread it."""

Severity = Literal["ok", "note", "warning", "error"]
"""`ok` and `note` change no exit code; a `warning` costs time, safety or proof; an `error` stops a server or a scan, or
makes its result worthless."""

MARKS: dict[Severity, str] = {"ok": "ok  ", "note": "note", "warning": "WARN", "error": "FAIL"}


@dataclass(frozen=True)
class Finding:
    """One thing that was examined.

    Attributes:
        severity: how bad it is.
        code: what kind of finding it is, in a word that stays the same.
        where: the entry, file, server or scan.
        what: what was found, and what was expected.
        why: why it will hurt; empty where `what` says it.
        todo: what to do; empty where `what` says it.
    """

    severity: Severity
    code: str
    where: str
    what: str
    why: str = ""
    todo: str = ""

    @property
    def line(self) -> str:
        """The finding in one line."""
        return f"{MARKS[self.severity]}  {self.where}: {'; '.join(filter(None, (self.what, self.why, self.todo)))}"

    def as_json(self) -> dict[str, str]:
        """The finding as plain values."""
        return asdict(self)


def exit_code(findings: Iterable[Finding]) -> int:
    """0: neither warnings nor errors; 1: warnings alone; 2: an error."""
    worst = {finding.severity for finding in findings}
    return 2 if "error" in worst else int("warning" in worst)
