"""Makes a manifest of a folder at an address: by the names alone, in a folder here with empty files of the same names.

Knows nothing of how cases are gathered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from voxtile.batch.cohort.making import MadeManifest, manifest_of
from voxtile.batch.cohort.remote_scans import IN_PARTS, Remote
from voxtile.batch.walk import DICOM_MARK, LeftOut
from voxtile.errors import InputError
from voxtile.io.formats.base import ends_in
from voxtile.places.address import Address

NAMES = "folder"
"""The folder of the spool with the empty files."""


def manifest_at(folder: Address, channels: Sequence[str], remote: Remote) -> MadeManifest:
    """Gathers the cases of a folder at an address, as `manifest_of` does.

    Raises:
        InputError: it cannot be listed, is no folder of scans, or its names leave open what the channels are.
        ServerUnavailable: nobody answers.
    """
    found = remote.store.content(folder)
    if not found:
        raise InputError(f"{folder}: expected a folder of scans, found nothing of that name")
    names = remote.spool.folder / NAMES
    names.mkdir(mode=0o700)
    remote.stands_for(names, folder)
    odd = [name for name in found if not _make(names, name, folder, remote)]
    remote.know({folder / name: one for name, one in found.items()})
    made = manifest_of(names, channels)
    whole = [case for case in made.cases if not any(ends_in(file.name, IN_PARTS) for file in case.files)]
    parts = [
        f"{case.name}: a scan of several files cannot be read there; convert it"
        for case in made.cases
        if case not in whole
    ]
    if not whole:
        raise InputError("; ".join([f"{folder}: expected scans in one file each, found none", *parts[:3]]))
    left_out = (*made.left_out, *(LeftOut(name, "no name that a folder can hold") for name in odd))
    return replace(made, cases=tuple(whole), left_out=left_out, faults=(*made.faults, *parts))


def _make(names: Path, name: str, folder: Address, remote: Remote) -> bool:
    """Makes an empty file; one that may be DICOM without an ending gets its first bytes. False where it cannot be."""
    if any(part in ("", ".", "..") for part in name.split("/")):
        return name.endswith("/")  # what some programs write for an empty folder
    file = names / name
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        nameless = not file.suffix or file.suffix[1:].isdigit()
        file.write_bytes(remote.store.first_bytes(folder / name, DICOM_MARK.stop) if nameless else b"")
    except OSError:
        return False
    return True
