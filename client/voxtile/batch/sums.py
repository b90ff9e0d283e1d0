"""Checksums of files. Knows nothing of what is in them."""

from __future__ import annotations

import hashlib
from pathlib import Path

READ_BYTES = 1 << 20
"""Bytes read at a time: a scan may be larger than what memory is left beside it."""


def sha256_of(path: Path) -> str:
    """The checksum of a file's content. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(READ_BYTES):
            digest.update(piece)
    return digest.hexdigest()
