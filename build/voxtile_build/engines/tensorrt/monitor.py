"""How far TensorRT's builder is, told while it builds, and Ctrl-C, which stops it."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from voxtile_build.progress import Tell


@dataclass
class Phase:
    """A phase of the builder: the phase that it is a part of, its steps, and how many of them are done."""

    parent: str | None
    steps: int
    done: int = 0


class Phases:
    """The phases that are at work, by name, and the share of the build that is done.

    A phase is begun within a step of its parent. Knows nothing of TensorRT.
    """

    def __init__(self, tell: Tell) -> None:
        self._tell, self._share = tell, 0.0
        self._phases: dict[str, Phase] = {}
        self._lock = threading.Lock()  # TensorRT calls from several threads
        self.stopped = False

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase begins."""
        with self._lock:
            self._phases[name] = Phase(parent, steps)

    def step(self, name: str, step: int) -> None:
        """The step numbered `step`, from 0, has ended; tells the share if it has grown."""
        with self._lock:
            if name in self._phases:
                self._phases[name].done = step + 1
            share = max((self._done(one) for one, phase in self._phases.items() if phase.parent is None), default=0.0)
            grown, self._share = share > self._share, max(share, self._share)
        if grown:
            self._tell(share)

    def finish(self, name: str) -> None:
        """A phase has ended, whether all of its steps were told or not."""
        with self._lock:
            self._phases.pop(name, None)

    def _done(self, name: str) -> float:
        phase = self._phases[name]
        within = max((self._done(one) for one, part in self._phases.items() if part.parent == name), default=0.0)
        return min((phase.done + within) / phase.steps, 1.0)


def monitor_of(trt: ModuleType, phases: Phases) -> Any:
    """TensorRT's monitor of a build; it must live as long as the build."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            phases.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            phases.step(phase_name, step)
            return not phases.stopped

        def phase_finish(self, phase_name: str) -> None:
            phases.finish(phase_name)

    return Monitor()


@contextlib.contextmanager
def stopped_by_ctrl_c(phases: Phases) -> Iterator[None]:
    """Ctrl-C stops the build at its next step: an exception inside TensorRT's calls would end the process.

    Raises:
        KeyboardInterrupt: it was stopped.
    """
    if threading.current_thread() is not threading.main_thread():  # only that one may set handlers
        yield
        return

    def stop(*_: object) -> None:
        phases.stopped = True

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if phases.stopped:
        raise KeyboardInterrupt
