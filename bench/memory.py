"""Memory of a process, as Linux tells it in /proc."""

from __future__ import annotations

import contextlib
from pathlib import Path


def peak_rss_bytes(pid: int | str = "self") -> int:
    """Returns the highest resident memory of a process since it was started, or since `forget_peak`.

    `ru_maxrss` is no substitute: a child that is started by fork and exec begins with the peak of its parent.
    """
    return status_bytes("VmHWM", pid)


def forget_peak(pid: int | str = "self") -> None:
    """Makes `peak_rss_bytes` count from now on; if the kernel forbids it, the count still starts with the process."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")


def status_bytes(field: str, pid: int | str = "self") -> int:
    """Returns a field of a process's status, such as VmRSS or RssShmem (shared regions); 0 if it is missing."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0
