"""The command `voxtile` that kills itself with SIGKILL at one of its requests to S3: nothing cleans up.

Run as `python -m tests.support.killed_sending ARGUMENTS…`; KILL says at which request, from 1, and whether before it is
sent or after it was answered. A network in this process takes the place of a model's server.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from aiobotocore.client import AioBaseClient

from tests.support.in_memory_commands import main

KILL = "VOXTILE_TEST_KILL"


def _die_at(number: int, after: bool) -> None:
    real, seen = AioBaseClient._make_api_call, 0

    async def call(self: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal seen
        seen += 1
        mine = seen
        if mine == number and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        answer = await real(self, *arguments, **options)
        if mine == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    AioBaseClient._make_api_call = call


if __name__ == "__main__":
    at, _, when = os.environ[KILL].partition(" ")
    _die_at(int(at), when == "after")
    main()
