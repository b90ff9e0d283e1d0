"""Fetches what segments scans on the server: a copy of Voxtile's client, and the packages that it needs.

The caller's own environment cannot serve the stubs: it may hold NumPy 2. Knows nothing of running it.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from voxtile_server.errors import ServerError
from voxtile_server.install.fetch import fetch, make_once, short_hash

BACKEND = "voxtile"
"""The backend of the entries that need it."""

VARIABLE = "VOXTILE_CLIENT"
"""The environment variable that tells the backend the folders."""

PINS = Path(__file__).with_name("client.txt")


def fetch_client(cache: Path) -> str:
    """The folders that the stubs shall find packages in, separated as in PATH.

    Raises:
        ServerError: the client is not installed, or a package cannot be fetched.
    """
    package = _installed()
    sources = {path.relative_to(package): path.read_bytes() for path in sorted(package.rglob("*.py"))}
    digest = short_hash(b"".join(str(path).encode() + data for path, data in sources.items()))

    def copy(folder: Path) -> None:
        for path, data in sources.items():
            target = folder / package.name / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)

    def whole(folder: Path) -> bool:
        return all((folder / package.name / path).is_file() for path in sources)

    copied = make_once(cache / f"voxtile-{digest}", copy, whole)
    return os.pathsep.join((str(copied), str(fetch(cache, PINS))))


def _installed() -> Path:
    found = importlib.util.find_spec("voxtile")
    if found is None or found.origin is None:
        raise ServerError(
            "the repository holds entries that segment whole scans on the server, which needs the client: "
            'pip install "voxtile-server[volume]"'
        )
    return Path(found.origin).parent
