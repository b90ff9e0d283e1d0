"""Names the process that owns a thing, so that another process can tell whether its owner has ended.

A process id alone names nothing: it is given out again, and every PID namespace (every container) counts for itself.
Knows nothing of shared memory or servers.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")

DIGITS = 16
"""Hexadecimal digits of a place."""

NAME = re.compile(
    rf"(?P<pid>[1-9][0-9]{{0,9}})-(?P<start>[0-9]{{1,20}})-(?P<uid>[0-9]{{1,10}})-(?P<place>[0-9a-f]{{{DIGITS}}})(?:-|$)"
)


@dataclass(frozen=True)
class Owner:
    """A process.

    Attributes:
        pid: its id, in its own PID namespace.
        start: when it started, in clock ticks since boot.
        uid: the user it runs as.
        place: where `pid` and `start` mean something: a digest of the boot and of the PID and time namespaces.
    """

    pid: int
    start: int
    uid: int
    place: str

    def __str__(self) -> str:
        return f"{self.pid}-{self.start}-{self.uid}-{self.place}"


def this_process() -> Owner:
    """Returns this process, as it is now: a fork is another one."""
    start = _start("self")
    place = secrets.token_hex(DIGITS // 2) if start is None else _place()
    return Owner(os.getpid(), start or 0, os.geteuid(), place)


def parse_owner(name: str) -> Owner | None:
    """Returns the owner whose text `name` begins with; None where it does not name one."""
    found = NAME.match(name)
    if found is None:
        return None
    return Owner(int(found["pid"]), int(found["start"]), int(found["uid"]), found["place"])


def has_ended(owner: Owner) -> bool:
    """Returns whether `owner` is known to have ended.

    Only processes of this user in this place are judged. Of all others nothing is known, so they count as alive.
    """
    if (owner.uid, owner.place) != (os.geteuid(), _place()):
        return False
    try:
        os.kill(owner.pid, 0)  # asks only; unlike /proc, it hides no process of another user
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False
    start = _start(str(owner.pid))
    return start is not None and start != owner.start  # the id has been given to another process


def _place() -> str:
    """The place of this process; a new one at each call where it cannot be known, so that it equals no other."""
    try:
        if _proc_is_ours():
            parts = ((PROC / "sys/kernel/random/boot_id").read_text(), _namespace("pid"), _namespace("time"))
            return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:DIGITS]
    except OSError:
        pass
    return secrets.token_hex(DIGITS // 2)


def _namespace(kind: str) -> str:
    """This process's namespace of a kind; empty where the kernel has no such kind, and so but one of it."""
    try:
        return os.readlink(PROC / "self/ns" / kind)
    except FileNotFoundError:
        return ""


def _proc_is_ours() -> bool:
    """Whether /proc shows this process's own PID namespace: else the ids in it are not those that `kill` takes."""
    for line in (PROC / "self/status").read_text().splitlines():
        if line.startswith("NSpid:"):
            return line.split()[1:] == [str(os.getpid())]
    return False


def _start(pid: str) -> int | None:
    """The start of a process in clock ticks since boot; None where it cannot be read."""
    try:
        return int((PROC / pid / "stat").read_text(errors="replace").rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None
