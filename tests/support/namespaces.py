"""Runs a program in namespaces of its own, as a container does; without privileges, also in a user namespace."""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Sequence

WAYS = (
    ("unshare", "--pid", "--fork", "--kill-child"),
    ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"),
)


@functools.cache
def own_pid_namespace() -> Sequence[str] | None:
    """The words before a command that run it in another PID namespace; None where this machine does not allow it."""
    if shutil.which("unshare") is None:
        return None
    for way in WAYS:
        if subprocess.run([*way, "true"], capture_output=True).returncode == 0:
            return way
    return None


@functools.cache
def own_mounts() -> Sequence[str] | None:
    """The words before a command whose mounts nobody else sees; None where this machine does not allow them."""
    if shutil.which("unshare") is None:
        return None
    for way in (("unshare", "--mount"), ("unshare", "--user", "--map-root-user", "--mount")):
        tried = subprocess.run([*way, "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"], capture_output=True)
        if tried.returncode == 0:
            return way
    return None
