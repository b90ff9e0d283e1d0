"""What `voxtile doctor` finds in a repository that a test has built, beside what is well."""

from __future__ import annotations

from pathlib import Path

from voxtile.doctor.lint import Server, lint
from voxtile.doctor.releases import EMBEDDED, release_named


def faults_of(*repositories: Path) -> list[str]:
    """The lines of all findings, for the embedded server on another machine."""
    found = lint(repositories, Server(release_named(EMBEDDED)))
    return [finding.line for finding in found if finding.severity != "ok"]
