"""Decides what an error of a server means; the only place that reads gRPC's status codes and texts.

Pure functions: knows nothing of requests, servers or what is done about a fault.
"""

from __future__ import annotations

from enum import Enum


class Fault(Enum):
    """What an error means for the request and for the server that gave it."""

    QUEUE_FULL = "the server is busy: send fewer requests to it, and this one again a little later"
    MEMORY_FORGOTTEN = "the server does not know the shared memory: make new memory, and count a refusal"
    SERVER_LOST = "the server is gone or lacks the model: send the request elsewhere, and probe the server later"
    DEADLINE = "the answer took too long: treat the server as lost, and count a refusal"
    REFUSED = "the server refuses this very request: count a refusal"


_LOST = ("UNAVAILABLE", "CANCELLED", "NOT_FOUND", "UNKNOWN")
_NO_TRITON = ("UNAVAILABLE", "DEADLINE", "UNIMPLEMENTED")


def classify(status: str | None, text: str | None) -> Fault:
    """Decides what a failed inference means.

    Args:
        status: gRPC's status, such as "StatusCode.UNAVAILABLE"; None where there is none.
        text: the server's message.
    """
    status, text = status or "", (text or "").lower()
    if "queue" in text or "RESOURCE_EXHAUSTED" in status:
        return Fault.QUEUE_FULL
    if "shared memory" in text:
        return Fault.MEMORY_FORGOTTEN
    if any(state in status for state in _LOST):
        return Fault.SERVER_LOST
    return Fault.DEADLINE if "DEADLINE" in status else Fault.REFUSED


def no_triton(status: str | None) -> bool:
    """Whether the status of a call without tiles (readiness, configuration) means that no Triton server answers."""
    return any(state in (status or "") for state in _NO_TRITON)


def memory_in_use(text: str | None) -> bool:
    """Whether a server refuses to let go of shared memory because it still uses it."""
    return "in use" in (text or "")
