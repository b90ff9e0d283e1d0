"""Lets a step end before a signal ends the run. Knows nothing of training."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Held:
    """While entered, the first ending signal is held; on leaving, it goes to whoever it was for.

    A second one goes there at once. Outside the main thread nothing is held, as Python cannot.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Held:
        if threading.current_thread() is threading.main_thread():
            for number in ENDING:
                handler = signal.getsignal(number)
                if handler not in (signal.SIG_IGN, None):  # ignored as under nohup, or not Python's
                    self._before[number] = handler
                    signal.signal(number, self._hold)
        return self

    def _hold(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            self._give_back()
        self.number = number

    def __exit__(self, kind: object, *_: object) -> None:
        self._restore()
        if self.number is not None and kind is None:
            signal.raise_signal(self.number)

    def _give_back(self) -> None:
        self._restore()
        signal.raise_signal(self.number or signal.SIGINT)

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())
