"""Writes a line for each case: when, which, by which model, what was sent where, or why not. As JSON, one a line.

A case is named by a keyed hash. Nothing that an object says stands in a line. Knows nothing of how cases are worked on.
"""

from __future__ import annotations

import datetime
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any


class Audit:
    """A file that lines are added to. Several threads may use it.

    Args:
        file: the file; it may be moved away at any time.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()

    def write(self, case: str, outcome: str, **facts: Any) -> None:
        """Adds a line. Where it cannot be written, standard error gets it: no case stops for it.

        Args:
            case: the name of the case.
            outcome: what became of it, in a word or two.
            **facts: more; None is left out.
        """
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")
        said = {name: value for name, value in facts.items() if value is not None}
        line = json.dumps({"time": now, "case": case, "outcome": outcome, **said})
        with self._lock:
            try:
                self._append(line)
            except OSError as error:
                reason = error.strerror or type(error).__name__
                sys.stderr.write(f"error: {self._file}: cannot be written ({reason}); its line: {line}\n")

    def _append(self, line: str) -> None:
        handle = os.open(self._file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            size = os.fstat(handle).st_size
            cut = size > 0 and os.pread(handle, 1, size - 1) != b"\n"  # the disk was full in the middle of a line
            data = (("\n" if cut else "") + line + "\n").encode()
            while data:
                data = data[os.write(handle, data) :]
            os.fsync(handle)
        finally:
            os.close(handle)
