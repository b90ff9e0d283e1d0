"""What scans were found to hold, kept for a run that goes on, so that it need not read them again.

Names stand in no file here: a scan is known by a digest of where its files lie, how large they are, and when they were
last written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from voxtile_build.hashing import bytes_sha256
from voxtile_build.repository.durable import replace_text
from voxtile_build.slimming.given.values import Values

FILE = "scans.json"


class LookedAt:
    """The digests and values of scans, by what their files were when they were read.

    Args:
        folder: where an earlier run may have kept them; it need not exist.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._known: dict[str, Any] = {}
        if folder is not None:
            # What cannot be read is looked at again.
            with suppress(OSError, ValueError, RecursionError):
                found = json.loads((folder / FILE).read_text(encoding="utf-8"))
                self._known = found if isinstance(found, dict) else {}

    def key(self, files: Sequence[Path], reading: str) -> str:
        """What a scan is known by.

        Args:
            files: all its files.
            reading: in what way it is read.

        Raises:
            OSError: a file is not there.
        """
        stats = [(str(file.resolve()), file.stat()) for file in files]
        facts = [[path, stat.st_size, stat.st_mtime_ns, stat.st_ino] for path, stat in stats]
        return bytes_sha256(json.dumps([reading, facts]).encode())

    def find(self, key: str) -> tuple[str, tuple[Values, ...]] | None:
        """SHA-256 of a scan's files, and the values of its channels; None where it was not looked at."""
        with suppress(KeyError, TypeError, ValueError):
            known = self._known[key]
            return str(known["sha256"]), tuple(map(_values, known["channels"]))
        return None

    def keep(self, key: str, sha256: str, channels: Sequence[Values]) -> None:
        """Note what a scan holds."""
        self._known[key] = {"sha256": sha256, "channels": [_plain(values) for values in channels]}

    def save(self, folder: Path) -> None:
        """Write it all into a folder, in one step.

        Raises:
            OSError: it cannot be written.
        """
        replace_text(folder / FILE, json.dumps(self._known))


def _plain(values: Values) -> dict[str, Any]:
    return {
        "quantiles": values.quantiles.tolist(),
        "flat": values.flat,
        "levels": values.levels,
        "voxels": values.voxels,
    }


def _values(fields: Mapping[str, Any]) -> Values:
    quantiles = np.array(fields["quantiles"], np.float64)
    return Values(quantiles, float(fields["flat"]), int(fields["levels"]), str(fields["voxels"]))
