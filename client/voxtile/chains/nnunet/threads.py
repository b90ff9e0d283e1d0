"""Work on several cores whose matrix products stay on the core that asked for them.

BLAS splits even small products over all cores and waits for the slowest; on a machine that is also doing something
else this was measured to be ten times slower than one product a core. So BLAS is held to one thread while a pool of
Python threads (numpy releases the interpreter lock) shares out the slabs.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Hold:
    """The limit on BLAS is the process's: whoever comes first sets it, whoever leaves last lifts it.

    threadpoolctl lets only the thread that set a limit lift it, so one thread does both for everybody.
    """

    def __init__(self) -> None:
        self._inherited: Any = None
        self._reset()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._holders = 0
        self._limit: Any = None
        self._setter: ThreadPoolExecutor | None = None

    def _after_fork(self) -> None:
        """The setter thread and the holders exist only in the parent, and one of them may have held the lock."""
        self._inherited = self._limit if self._holders else self._inherited
        self._reset()

    def take(self) -> None:
        with self._lock:
            if self._setter is None:
                self._setter = ThreadPoolExecutor(1, thread_name_prefix="voxtile-blas")
            if self._holders == 0:
                self._limit = self._setter.submit(self._limit_blas).result()
            self._holders += 1

    def _limit_blas(self) -> Any:
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        if self._inherited is not None:
            self._inherited.restore_original_limits()
            self._inherited = None
        return threadpool_limits(limits=1, user_api="blas")

    def release(self) -> None:
        with self._lock:
            self._holders -= 1
            if self._holders == 0 and self._setter is not None:
                self._setter.submit(self._limit.restore_original_limits).result()


_hold = _Hold()


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Within this block numpy's matrix products run on the calling thread only; blocks may nest and overlap."""
    _hold.take()
    try:
        yield
    finally:
        _hold.release()


def run_all(work: Callable[[Item], Result], items: Iterable[Item], threads: int) -> list[Result]:
    """``[work(item) for item in items]`` on ``threads`` threads; the first exception is raised."""
    with single_threaded_blas():
        if threads <= 1:
            return [work(item) for item in items]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(work, items))
