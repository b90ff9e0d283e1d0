"""The process between us and a program: it ends the program with all its children, whatever happens to us.

It runs as a script and needs only the standard library. It reads one JSON object from standard input
(`supervised.Task`), writes the program's process id to standard output, lets the program write to its own standard
error, and ends with the program's exit code (128 + n after signal n). It knows nothing of Triton.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
WATCHED = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
POLL_S = 0.25  # a parent's death is noticed within this time; asking costs next to nothing
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def main() -> int:
    """Run the program until it ends; its exit code."""
    task = json.load(sys.stdin)
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    # The children of a killed program become ours, so that we can see them end.
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    program = subprocess.Popen(
        task["command"],
        env=task["environment"],
        cwd=task["folder"],
        stdin=subprocess.DEVNULL,
        stdout=2,
        stderr=2,
        preexec_fn=lambda: _in_child(task["stack_bytes"]),
    )
    sys.stdout.write(f"{program.pid}\n")
    sys.stdout.flush()
    try:
        status = _watch(program.pid, task["parent"], task["grace_s"])
    finally:
        _end_group(program.pid)
        remove_shared_memory(task["shm_prefix"])
        for link in task["links"]:
            remove_link(Path(link))
    return status


def remove_shared_memory(prefix: str) -> None:
    """Remove the regions of shared memory whose names begin with `prefix`; killed stubs leave theirs.

    What cannot be removed stays: it is somebody else's, or no file.
    """
    for region in SHARED_MEMORY.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            region.unlink()


def remove_link(link: Path) -> None:
    """Remove a link and the temporary folder that was made for it."""
    link.unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        link.parent.rmdir()


def _in_child(stack_bytes: int) -> None:
    """Runs between fork and exec; this process has one thread, so that is safe."""
    os.setpgid(0, 0)
    _set_stack(stack_bytes)
    # For when this process itself is killed.
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)


def _set_stack(wanted: int) -> None:
    """Set the stack of a program's threads, as far as this user may; 0 leaves it as it is."""
    _, most = resource.getrlimit(resource.RLIMIT_STACK)
    allowed = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
    if allowed:
        resource.setrlimit(resource.RLIMIT_STACK, (allowed, most))


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _watch(program: int, parent: int, grace_s: float) -> int:
    """Wait for the program's end: SIGTERM asks for it, the end of the grace period or of the parent forces it."""
    deadline = None
    while True:
        received = signal.sigtimedwait(WATCHED, POLL_S)
        status = _reap(program)
        if status is not None:
            return status
        if received is not None and received.si_signo != signal.SIGCHLD and deadline is None:
            os.kill(program, signal.SIGTERM)
            deadline = time.monotonic() + grace_s
        # A death signal would come already when the parent's *thread* ends, so the parent's id is looked at.
        if os.getppid() != parent or (deadline is not None and time.monotonic() > deadline):
            os.kill(program, signal.SIGKILL)


def _reap(program: int) -> int | None:
    """Collect every child that has ended; the program's exit code if it is among them."""
    found = None
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
            if ended[0] == program:
                code = os.waitstatus_to_exitcode(ended[1])
                found = 128 - code if code < 0 else code
    return found


def _end_group(program: int) -> None:
    """Kill what is left of the program's process group, and wait until it is gone."""
    with contextlib.suppress(ProcessLookupError):
        while True:
            os.killpg(program, signal.SIGKILL)
            _reap(program)
            time.sleep(0.005)


if __name__ == "__main__":
    sys.exit(main())
