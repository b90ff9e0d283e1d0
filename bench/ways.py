"""The ways in which a scan, or one tile, can be segmented: each is made ready from a job, and called once a run.

A run of a scan begins with the file of the scan and ends with the file of the mask, for every way alike. It tells
`seconds` (wall clock of all that), `engine_seconds` (of the network alone) and `tiles`.
"""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

Job = Mapping[str, Any]


class Way(Protocol):
    """Called once a run; returns what was measured."""

    def __call__(self) -> dict[str, Any]: ...


def rss_bytes() -> int:
    """The resident memory of this process now."""
    return _status("VmRSS", "self")


def peak_rss_bytes(pid: int | str = "self") -> int:
    """The most resident memory that a process has had since it was started.

    Not `ru_maxrss`: over fork and exec that keeps the peak of the parent, which here holds PyTorch and whole scans.
    """
    return _status("VmHWM", pid)


def forget_peak(pid: int | str = "self") -> None:
    """Lets `peak_rss_bytes` count from now on; where the kernel does not allow it, it counts from the start."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")


def shared_bytes(pid: int | str = "self") -> int:
    """The memory that a process shares with others by intent: regions, not libraries."""
    return _status("RssShmem", pid)


def _status(field: str, pid: int | str) -> int:
    """A field of Linux's process status, there in KiB; 0 where it is not told."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0


def _from(module: str, name: str) -> Callable[[Job], Way]:
    """Imported only when it is used: a way must not pay for the libraries of another."""

    def make(job: Job) -> Way:
        way: Way = getattr(importlib.import_module(f".{module}", __package__), name)(job)
        return way

    return make


WAYS: Mapping[str, Callable[[Job], Way]] = {
    "torch": _from("way_torch", "TorchScan"),
    "runtime": _from("way_runtime", "RuntimeScan"),
    "voxtile": _from("way_voxtile", "VoxtileScan"),
    "nnunet": _from("way_nnunet", "NnunetScan"),
    "torch-tile": _from("way_torch", "TorchTile"),
    "engine-tile": _from("way_runtime", "EngineTile"),
    "free": _from("way_torch", "FreeScan"),
    "resample": _from("way_resample", "Resample"),
}


class Clock:
    """Adds up the seconds that a callable takes, and counts its calls."""

    def __init__(self, work: Callable[..., Any]) -> None:
        self._work = work
        self.reset()

    def reset(self) -> None:
        self.seconds, self.calls = 0.0, 0

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        begun = time.perf_counter()
        try:
            return self._work(*arguments, **named)
        finally:
            self.seconds += time.perf_counter() - begun
            self.calls += 1
