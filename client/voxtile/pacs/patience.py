"""Tries again what may pass, with longer and longer pauses. Knows nothing of what is tried."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from voxtile.errors import VoxtileError

Result = TypeVar("Result")


class Passing(Exception):
    """A failure that may pass. `error` is what is raised if it does not."""

    def __init__(self, error: VoxtileError) -> None:
        super().__init__(str(error))
        self.error = error


def patiently(action: Callable[[], Result], pauses_s: Sequence[float]) -> Result:
    """Returns what `action` does; where that fails with `Passing`, it is tried again after each pause.

    Raises:
        VoxtileError: it failed each time, or for good.
    """
    for pause in (*pauses_s, None):
        try:
            return action()
        except Passing as passing:
            if pause is None:
                raise passing.error from None
            time.sleep(pause)
    raise AssertionError("the last pause is None")
