"""Runs mutmut's own command, with a timeout that ends the mutant that it was set for, and nothing else.

    python -P …/tests/mutation/mutmut_run.py run …

mutmut sends the signal to a process number when the time is over, whether or not the mutant has ended long before. A
system that gives numbers again soon has then given it to another process, which may be anybody's: a server of a test, a
shell. A file descriptor of the process cannot mean another one.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time

TURN_S = 0.2


class Timeouts:
    """Ends children whose time is over; their descriptors are closed soon after they have ended."""

    def __init__(self) -> None:
        self._deadlines: dict[int, float] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def set(self, pid: int, timeout_s: float) -> None:
        """Sends SIGXCPU to a child that nobody has waited for yet, if it still runs after this time in seconds."""
        with self._lock:
            self._deadlines[os.pidfd_open(pid)] = time.monotonic() + timeout_s
            if self._thread is None:  # of this process: threads do not survive a fork
                self._thread = threading.Thread(target=self._watch, daemon=True)
                self._thread.start()

    def running(self) -> int:
        """How many children are watched."""
        with self._lock:
            return len(self._deadlines)

    def _watch(self) -> None:
        while True:
            time.sleep(TURN_S)
            with self._lock:
                self._turn()

    def _turn(self) -> None:
        ended = select.poll()
        for process in self._deadlines:
            ended.register(process, select.POLLIN)
        for process, _ in ended.poll(0):
            del self._deadlines[process]
            os.close(process)
        for process, deadline in self._deadlines.items():
            if deadline < time.monotonic():
                signal.pidfd_send_signal(process, signal.SIGXCPU)


def main() -> int:
    # mutmut reads the settings of the working directory while it is imported.
    from mutmut.__main__ import cli
    from mutmut.workers import isolation

    isolation.register_timeout = Timeouts().set
    return int(cli() or 0)


if __name__ == "__main__":
    sys.exit(main())
