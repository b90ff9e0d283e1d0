"""The process between us and tritonserver: ends it with all its stubs, and cleans up, whatever happens to us.

It runs with the standard library alone. It reads one JSON object from standard input (command, environment,
folder, parent, grace_s, shm_prefix, link), writes tritonserver's process id to standard output, lets tritonserver
write to its own standard error, and ends with tritonserver's exit code (128 + n after signal n).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
WATCHED = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
POLL_S = 0.25  # how long a parent may be dead before it is noticed; it has no cost to speak of
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def main() -> int:
    task = json.load(sys.stdin)
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    # Stubs whose server was killed become our children, so that we can see them end.
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    server = subprocess.Popen(
        task["command"],
        env=task["environment"],
        cwd=task["folder"],
        stdin=subprocess.DEVNULL,
        stdout=2,
        stderr=2,
        preexec_fn=_in_child,
    )
    sys.stdout.write(f"{server.pid}\n")
    sys.stdout.flush()
    try:
        status = _watch(server.pid, task["parent"], task["grace_s"])
    finally:
        _end_group(server.pid)
        remove_shared_memory(task["shm_prefix"])
        if task["link"] is not None:
            remove_link(Path(task["link"]))
    return status


def remove_shared_memory(prefix: str) -> None:
    """Remove the regions that killed stubs have left; nobody else uses this server's prefix."""
    for region in SHARED_MEMORY.glob(f"{prefix}*"):
        region.unlink(missing_ok=True)


def remove_link(link: Path) -> None:
    """Remove a link and the temporary folder that was made for it."""
    link.unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        link.parent.rmdir()


def _in_child() -> None:
    """Runs between fork and exec; this process has one thread, so that is safe."""
    os.setpgid(0, 0)
    # The last line of defence, for when this process itself is killed.
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _watch(server: int, parent: int, grace_s: float) -> int:
    """Wait for the server's end; ask for it on SIGTERM, force it after the grace or without a parent."""
    deadline = None
    while True:
        received = signal.sigtimedwait(WATCHED, POLL_S)
        status = _reap(server)
        if status is not None:
            return status
        if received is not None and received.si_signo != signal.SIGCHLD and deadline is None:
            os.kill(server, signal.SIGTERM)
            deadline = time.monotonic() + grace_s
        # The parent's id, not a death signal, which would come when the parent's *thread* ends.
        if os.getppid() != parent or (deadline is not None and time.monotonic() > deadline):
            os.kill(server, signal.SIGKILL)


def _reap(server: int) -> int | None:
    """Collect every child that has ended; the server's exit code if it is among them."""
    found = None
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
            if ended[0] == server:
                code = os.waitstatus_to_exitcode(ended[1])
                found = 128 - code if code < 0 else code
    return found


def _end_group(server: int) -> None:
    """Kill what is left of the server's process group, its stubs, and wait until it is gone."""
    with contextlib.suppress(ProcessLookupError):
        while True:
            os.killpg(server, signal.SIGKILL)
            _reap(server)
            time.sleep(0.005)


if __name__ == "__main__":
    sys.exit(main())
