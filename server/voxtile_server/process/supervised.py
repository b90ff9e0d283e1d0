"""A program under our supervisor: it ends when we end, and leaves neither children nor shared memory behind.

It knows nothing of Triton, except that regions of shared memory are told apart by a prefix.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from voxtile_server.process import supervisor
from voxtile_server.process.supervisor import remove_link, remove_shared_memory


@dataclass(frozen=True)
class Task:
    """What the supervisor shall do; it travels as JSON.

    Attributes:
        command: the program and its arguments.
        environment: all environment variables.
        folder: the working folder.
        grace_s: seconds that the program may take to end before it is killed.
        shm_prefix: beginning of the names of the program's regions of shared memory.
        links: links, each alone in a temporary folder; all are removed at the end.
        parent: the process with which the program ends.
        stack_bytes: the stack of each of the program's threads; 0 for what this process has.
    """

    command: Sequence[str]
    environment: Mapping[str, str]
    folder: str
    grace_s: float
    shm_prefix: str
    links: Sequence[str]
    parent: int
    stack_bytes: int = 0


class SupervisedProgram:
    """One run of a program.

    Args:
        task: what to run.
        log_file: takes what the program and the supervisor print.
        lock: a descriptor that the supervisor keeps open while it lives; the program does not get it.
    """

    def __init__(self, task: Task, log_file: IO[bytes], lock: int | None = None) -> None:
        self._task = task
        self.pid: int | None = None
        """The program's process id; None until `start` has returned True."""
        self._supervisor = subprocess.Popen(
            [sys.executable, "-I", "-S", supervisor.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log_file,
            text=True,
            pass_fds=() if lock is None else (lock,),
            start_new_session=True,  # Ctrl-C is for us; we then stop the program in order
        )

    def start(self) -> bool:
        """Start the program, once; False if it could not be started (the log then says why)."""
        stdin, stdout = self._supervisor.stdin, self._supervisor.stdout
        if stdin is None or stdout is None:
            return False
        with stdin:
            json.dump(asdict(self._task), stdin)
        with stdout:
            answer = stdout.readline()
        self.pid = int(answer) if answer else None
        return self.pid is not None

    @property
    def running(self) -> bool:
        """Whether the supervisor, and so perhaps the program, is still there."""
        return self._supervisor.poll() is None

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait for the end.

        Returns:
            The program's exit code (128 + n after signal n), or None when the time is over.
        """
        try:
            return self._supervisor.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def stop(self, margin_s: float) -> None:
        """Ask the program to end; it is killed after its grace period.

        Args:
            margin_s: seconds beyond the grace period after which the supervisor is killed as well.
        """
        if self.running:
            self._supervisor.terminate()
            self._wait_or_kill(self._task.grace_s + margin_s)
        self._clean_up()

    def kill(self) -> None:
        """Kill the program and its children at once (SIGKILL), as a crash would."""
        if self.running:
            if self.pid is None:
                self._supervisor.kill()  # the kernel then kills the program
            else:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)
            self._wait_or_kill(self._task.grace_s)
        self._clean_up()

    def _wait_or_kill(self, timeout_s: float) -> None:
        if self.wait(timeout_s) is None:
            self._supervisor.kill()
            self._supervisor.wait()

    def _clean_up(self) -> None:
        """Remove what is left; the supervisor does so itself, unless it was killed."""
        remove_shared_memory(self._task.shm_prefix)
        for link in self._task.links:
            remove_link(Path(link))
