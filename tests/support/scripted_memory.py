"""The shared memory of a server that does what a test says, and a clock that moves only when it is told.

It maps regions by their names in /dev/shm, as Triton does, and needs no server.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tritonclient.utils import InferenceServerException

SHARED_MEMORY = Path("/dev/shm")

NO_ANSWER = InferenceServerException("Deadline Exceeded", "StatusCode.DEADLINE_EXCEEDED")
IN_USE = InferenceServerException("shared memory region 'x' is in use", "StatusCode.INTERNAL")
REFUSED = InferenceServerException("not supported", "StatusCode.UNIMPLEMENTED")


class Clock:
    """Stands in for the module `time`."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class ScriptedMemory:
    """A `ServerMemory`.

    Attributes:
        mapped: the regions that the server maps, with the server's own view of each.
        asked: what it was asked to do, such as ("map", name), in order.
        refusals: by the name of a call, what it raises instead, one for each call; None lets a call pass.
        live: whether the server answers.
        clock: moves on by `silence_s` seconds where a call ends with `NO_ANSWER`.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self.mapped: dict[str, mmap.mmap] = {}
        self.files: dict[str, os.stat_result] = {}
        self.asked: list[tuple[str, str]] = []
        self.refusals: dict[str, list[Exception | None]] = {}
        self.live = True
        self.clock = clock
        self.silence_s = 0.0

    def map(self, name: str, size: int) -> None:
        self._asked("map", name)
        with open(SHARED_MEMORY / name, "r+b") as file:
            self.files[name] = os.fstat(file.fileno())
            self.mapped[name] = mmap.mmap(file.fileno(), size)

    def unmap(self, name: str) -> None:
        self._asked("unmap", name)
        self.mapped.pop(name, None)

    def names(self) -> list[str]:
        self._asked("names", "")
        return list(self.mapped)

    def server_is_live(self) -> bool:
        self._asked("live", "")
        return self.live

    def count(self, call: str) -> int:
        return sum(one == call for one, _ in self.asked)

    def _asked(self, call: str, name: str) -> None:
        self.asked.append((call, name))
        refusals = self.refusals.get(call, [])
        refusal = refusals.pop(0) if refusals else None
        if refusal is NO_ANSWER and self.clock is not None:
            self.clock.now += self.silence_s
        if refusal is not None:
            raise refusal


@contextmanager
def no_new_names() -> Iterator[None]:
    """Checks that the block leaves no name of this process in /dev/shm."""
    before = _ours()
    yield
    assert _ours() == before


def _ours() -> set[str]:
    return {path.name for path in SHARED_MEMORY.glob(f"voxtile-{os.getpid()}-*")}
