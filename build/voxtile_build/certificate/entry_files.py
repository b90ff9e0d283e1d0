"""Reads the certificate of an entry, and compares the entry's files with it. Runs nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxtile_build.errors import VerificationError
from voxtile_build.hashing import file_sha256
from voxtile_build.repository.entries import CERTIFICATE

KEYS: dict[tuple[str, ...], type] = {
    ("engine",): str,
    ("acceptance",): dict,
    ("metrics",): dict,
    ("versions",): dict,
    ("hashes", "files"): dict,
}
"""What every certificate has."""


@dataclass(frozen=True)
class CertifiedEntry:
    """An entry with its certificate.

    Attributes:
        folder: of the entry; its name is the entry's.
        version: the newest version folder that has a certificate.
        certificate: the content of certificate.json.
    """

    folder: Path
    version: Path
    certificate: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The entry's name."""
        return self.folder.name

    @property
    def samples(self) -> Path:
        """The file with the stored reference."""
        stored = self.certificate.get("samples")
        name = stored.get("file") if isinstance(stored, dict) else None
        if not isinstance(name, str):
            raise VerificationError(f"{self.version / CERTIFICATE}: expected samples.file, found none; build it again")
        return self.version / name

    def file_faults(self) -> Iterator[str]:
        """A sentence for every file that is missing, or is not the certified one."""
        expected = dict(self.certificate["hashes"]["files"])
        if "samples" in self.certificate:
            expected[self.samples.name] = self.certificate["samples"].get("sha256")
        for name, sha256 in expected.items():
            file = self.version / name
            if not file.is_file():
                yield f"{file}: missing; build the entry again"
            elif (found := file_sha256(file)) != sha256:
                yield (
                    f"{file}: expected the certified file (SHA-256 {str(sha256)[:12]}…), found another "
                    f"({found[:12]}…); build the entry again"
                )


def read_entry(folder: Path) -> CertifiedEntry:
    """An entry with its newest certificate.

    Raises:
        VerificationError: there is no certificate, or it cannot be read.
    """
    found = [file for file in folder.glob(f"*/{CERTIFICATE}") if file.parent.name.isdecimal()]
    found.sort(key=lambda file: int(file.parent.name))
    if not found:
        raise VerificationError(f"{folder}: expected a certificate in a version folder, found none; build it again")
    try:
        content: dict[str, Any] = json.loads(found[-1].read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise VerificationError(f"{found[-1]}: cannot be read: {error}; build the entry again") from None
    for path, kind in KEYS.items():
        value: Any = content
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if not isinstance(value, kind):
            raise VerificationError(f"{found[-1]}: expected {'.'.join(path)}, found none; build the entry again")
    return CertifiedEntry(folder, found[-1].parent, content)
