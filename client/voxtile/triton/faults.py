"""Decides what a failed request means; the only place that reads the status codes and texts of servers.

Pure functions: knows nothing of requests, servers or how a remedy is carried out.
"""

from __future__ import annotations

import re
from enum import Enum


class Remedy(Enum):
    """What to do with a request that has failed at a server."""

    RETRY_HERE = "send it again; this server may have it"
    RETRY_ELSEWHERE = "send it again, to another server where there is one"
    SLOW_DOWN = "send fewer requests to this server, and this one a little later"
    GIVE_UP = "never send it to this server again, which would say the same"


class Fault(Enum):
    """Why a request has failed.

    Attributes:
        remedy: what to do with the request.
        lost: whether the server has to be asked, before its next request, if it is there with the same model.
        meaning: the fault in words.
        advice: what the user can do about it; empty where the server's own words must do.
    """

    QUEUE_FULL = Remedy.SLOW_DOWN, False, "the server has too much to do", ""
    MEMORY_FORGOTTEN = Remedy.RETRY_HERE, True, "the server has forgotten the shared memory: it was started again", ""
    CONFLICT = Remedy.RETRY_HERE, False, "the server broke off, because of other requests", ""
    SERVER_LOST = Remedy.RETRY_ELSEWHERE, True, "the server is gone or lacks the model", ""
    DEADLINE = Remedy.RETRY_ELSEWHERE, True, "the answer took too long", "allow more time with --timeout"
    BROKEN = Remedy.RETRY_ELSEWHERE, False, "the server failed, or answered wrongly", "look at the server's log"
    REFUSED = Remedy.GIVE_UP, False, "the server refuses this very request", ""
    TOO_LARGE = (
        Remedy.GIVE_UP,
        False,
        "the server, or a proxy before it, limits the size of messages",
        "raise its limit, or send fewer tiles in a request with --sw-batch-size",
    )
    DENIED = (
        Remedy.GIVE_UP,
        True,
        "the server refuses access",
        "give a valid token, as the server expects it, with --header NAME:VALUE",
    )

    def __init__(self, remedy: Remedy, lost: bool, meaning: str, advice: str) -> None:
        self.remedy = remedy
        self.lost = lost
        self.meaning = meaning
        self.advice = advice

    @property
    def counts(self) -> bool:
        """Whether it counts as a failure of the request; the others say something of the server alone."""
        return self not in (Fault.QUEUE_FULL, Fault.SERVER_LOST)


_GRPC = {
    "OK": Fault.BROKEN,  # an error that says so is none
    "CANCELLED": Fault.SERVER_LOST,
    "UNKNOWN": Fault.BROKEN,
    "INVALID_ARGUMENT": Fault.REFUSED,
    "DEADLINE_EXCEEDED": Fault.DEADLINE,
    "NOT_FOUND": Fault.SERVER_LOST,
    "ALREADY_EXISTS": Fault.REFUSED,
    "PERMISSION_DENIED": Fault.DENIED,
    "RESOURCE_EXHAUSTED": Fault.QUEUE_FULL,
    "FAILED_PRECONDITION": Fault.REFUSED,
    "ABORTED": Fault.CONFLICT,
    "OUT_OF_RANGE": Fault.REFUSED,
    "UNIMPLEMENTED": Fault.REFUSED,
    "INTERNAL": Fault.BROKEN,
    "UNAVAILABLE": Fault.SERVER_LOST,
    "DATA_LOSS": Fault.BROKEN,
    "UNAUTHENTICATED": Fault.DENIED,
}

_HTTP = {
    401: Fault.DENIED,
    403: Fault.DENIED,
    404: Fault.SERVER_LOST,
    407: Fault.DENIED,
    408: Fault.DEADLINE,
    409: Fault.CONFLICT,
    413: Fault.TOO_LARGE,
    425: Fault.QUEUE_FULL,
    429: Fault.QUEUE_FULL,
    499: Fault.SERVER_LOST,
    501: Fault.REFUSED,
    502: Fault.SERVER_LOST,
    503: Fault.SERVER_LOST,
    504: Fault.DEADLINE,
    505: Fault.REFUSED,
}

# What a code does not tell apart. Triton's own words are tested against the real server, gRPC's against gRPC.
_FORGOTTEN = re.compile(r"shared memory region", re.IGNORECASE)
_BUSY = re.compile(r"exceeds maximum queue size|request timeout expired", re.IGNORECASE)
_RESTRICTED = re.compile(r"this protocol is restricted", re.IGNORECASE)
_BACKEND_DIED = re.compile(r"stub process .*is not healthy", re.IGNORECASE)
_TOO_LARGE = re.compile(
    r"message (is )?larger than max|message length too large|message exceeds( the)? max|payload too large",
    re.IGNORECASE,
)
_HTTP_ANSWER = re.compile(r"http2 header with status: (\d{3})", re.IGNORECASE)


def classify(status: str | int | None, text: str | None) -> Fault:
    """Decides what a failed request means.

    Args:
        status: gRPC's status, such as "StatusCode.UNAVAILABLE", or HTTP's, such as 503; None where there is none.
        text: the server's message.
    """
    text = text or ""
    code = status if isinstance(status, int) else _http_answer(text) or _name(status)
    fault = _of_http(code) if isinstance(code, int) else _GRPC.get(code, Fault.BROKEN)
    return _told_apart(fault, code, text)


def _told_apart(fault: Fault, code: str | int, text: str) -> Fault:
    """The fault, where the text of a code with several meanings says which one it is."""
    if fault in (Fault.SERVER_LOST, Fault.REFUSED) and _FORGOTTEN.search(text):
        return Fault.MEMORY_FORGOTTEN
    if code in ("UNAVAILABLE", 503) and _BUSY.search(text):
        return Fault.QUEUE_FULL
    if code in ("UNAVAILABLE", 503) and _RESTRICTED.search(text):
        return Fault.DENIED
    if code in ("INTERNAL", "UNKNOWN") and _BACKEND_DIED.search(text):
        return Fault.SERVER_LOST  # Triton starts the process again, and the request had no part in its end
    if code in ("RESOURCE_EXHAUSTED", "OUT_OF_RANGE", "UNKNOWN", "INTERNAL") and _TOO_LARGE.search(text):
        return Fault.TOO_LARGE
    return fault


def _name(status: str | None) -> str:
    """The name of gRPC's status "StatusCode.UNAVAILABLE", UNAVAILABLE; empty where there is none."""
    return (status or "").removeprefix("StatusCode.")


def _http_answer(text: str) -> int | None:
    """The status of an answer in plain HTTP, which a proxy gave in a server's place; only gRPC's text has it."""
    found = _HTTP_ANSWER.search(text)
    return int(found[1]) if found else None


def _of_http(status: int) -> Fault:
    """The fault of a status: by its own meaning, else by its class."""
    return _HTTP.get(status, Fault.REFUSED if 300 <= status < 500 else Fault.BROKEN)


def lacks_model(status: str | None) -> bool:
    """Whether the status of a question about a model means that the server does not offer it."""
    return _name(status) in ("NOT_FOUND", "INVALID_ARGUMENT", "FAILED_PRECONDITION")


def no_answer_in_time(status: str | None) -> bool:
    """Whether a call with this gRPC status ended without an answer, so that the server may or may not have obeyed."""
    return _name(status) in ("DEADLINE_EXCEEDED", "CANCELLED")


def memory_in_use(text: str | None) -> bool:
    """Whether a server refuses to let go of shared memory because it still uses it."""
    return "in use" in (text or "")
