"""Starts the clients of the soak as processes and collects what they tell."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

END_S = 150.0
"""A client may take so long to finish its scan and end: longer than a scan that waits for a server's return."""


class ClientProcess:
    """One client; `told` holds the lines that it has printed so far."""

    def __init__(self, kind: str, seed: int, scans: Path, urls: Sequence[str], clock: Path, errors: Path) -> None:
        self.kind = kind
        self.told: list[dict[str, Any]] = []
        self._errors = errors.open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.soak.client", kind, str(seed), str(scans), str(clock), *urls],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    def stop(self) -> None:
        """Asks the client to finish its scan and end."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    def wait(self) -> int | None:
        """Waits for the client's end; returns its exit code, or None where it hung and was killed."""
        try:
            return self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return None
        finally:
            self._reader.join(10)
            self._errors.close()

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Returns what it has told of one kind."""
        return [one for one in list(self.told) if one["event"] == kind]

    def _read(self) -> None:
        if self._process.stdout is not None:
            for line in self._process.stdout:
                self.told.append(json.loads(line))
