"""What doors answer about a job: events of its progress, and headers with its report. Knows nothing of routes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

from voxtile_server.gateway.jobs import Board, Job

EVENTS = "text/event-stream"
LONGEST_HEADER = 6000
"""Bytes of a report that travels in a header; a longer one is at the job's address."""


async def events(board: Board, job: Job, *, cancel: bool) -> AsyncIterator[bytes]:
    """Server-sent events of a job; where the caller goes away, `cancel` ends it."""
    try:
        async for state in job.changes():
            yield f"event: {state.state}\ndata: {json.dumps(state.as_json())}\n\n".encode()
    finally:
        if cancel:
            await board.cancel(job)


def headers_of(job: Job) -> dict[str, str]:
    """The headers beside what a finished job has made."""
    report = json.dumps(job.report)
    return {"Voxtile-Job": job.id} | ({"Voxtile-Report": report} if len(report) <= LONGEST_HEADER else {})
