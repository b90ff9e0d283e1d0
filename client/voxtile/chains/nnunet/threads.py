"""Runs work on several cores, with each matrix product on the core that asked for it.

BLAS splits even small products over all cores and waits for the slowest. On a machine that is also busy with something
else, this was measured to be ten times slower than one product for each core. So BLAS is limited to one thread while a
pool of Python threads shares the work; NumPy releases the interpreter's lock. Knows nothing of what the work is.
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
    """The limit on BLAS, which is the process's: the first holder sets it, the last one lifts it.

    threadpoolctl lets only the thread that set a limit lift it, so one thread of its own does both for all holders.
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
    """Within this block, NumPy's matrix products run on the calling thread only; blocks may nest and overlap."""
    _hold.take()
    try:
        yield
    finally:
        _hold.release()


def run_all(work: Callable[[Item], Result], items: Iterable[Item], threads: int) -> list[Result]:
    """Returns `[work(item) for item in items]`, computed on `threads` threads; raises the first exception."""
    with single_threaded_blas():
        if threads <= 1:
            return [work(item) for item in items]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(work, items))
