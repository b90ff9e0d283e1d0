"""What an error means in HTTP: a status, and our one line. Knows nothing of jobs."""

from __future__ import annotations

import errno

from voxtile.asked import as_parameters
from voxtile.errors import (
    AccessError,
    InputError,
    MemoryLimitError,
    MissingExtraError,
    ModelError,
    NoResponseError,
    OtherBuildError,
    OutputError,
    ServerUnavailable,
    TileError,
    in_one_line,
)


class HttpFailure(Exception):
    """A request that is refused.

    Attributes:
        status: of HTTP.
        headers: beside the usual ones.
    """

    def __init__(self, status: int, text: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.headers = headers or {}


STATUS: tuple[tuple[type[Exception], int], ...] = (
    (InputError, 422),
    (OutputError, 422),  # what is asked for cannot be made of this scan
    (MemoryLimitError, 413),
    (NoResponseError, 504),
    (AccessError, 502),  # it is the gateway's token that Triton refuses, not the caller's
    (ServerUnavailable, 503),
    (OtherBuildError, 503),  # the next scan gets the new one
    (ModelError, 404),
    (TileError, 502),
    (MissingExtraError, 501),
)
"""The first class that fits decides."""


def failure_of(error: BaseException, place: str) -> HttpFailure:
    """The failure that a caller is told.

    Args:
        error: what happened.
        place: the folder of the upload, which is nobody's concern: names in it lose it.
    """
    if isinstance(error, HttpFailure):
        return error
    if isinstance(error, OutputError) and isinstance(error.__context__, OSError):
        return storage_failure_of(error.__context__)
    status = next((status for kind, status in STATUS if isinstance(error, kind)), 500)
    return HttpFailure(status, as_parameters(in_one_line(error).replace(f"{place}/", "")))


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def storage_failure_of(error: OSError) -> HttpFailure:
    """The failure that a caller is told where the gateway's own disk refuses; without the paths of its files."""
    status = 507 if error.errno in NO_ROOM else 500
    reason = error.strerror or type(error).__name__
    text = (
        f"the gateway could not store what was sent ({reason}); tell its operator, who chooses the disk with --folder"
    )
    return HttpFailure(status, text, {"Connection": "close"})
