"""Waits for what may take minutes, such as a server that loads a model, without the threads that all others share."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")


async def on_own_thread(work: Callable[[], Result]) -> Result:
    """Does work on a thread of its own, and returns what it gives or raises its error.

    The event loop has few threads, fewer than scans that may wait. Where these are waited on, whoever holds them all
    stops everybody: scans that run, other models, and the answer that the gateway is well. The process may end
    meanwhile.
    """
    future: Future[Result] = Future()

    def run() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = work()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run, name="voxtile-waiting", daemon=True).start()
    return await asyncio.wrap_future(future)
