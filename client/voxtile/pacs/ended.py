"""Tells an answer of HTTP that was cut off from a whole one; knows nothing of DICOM.

A PACS may send an answer that does not say how long it is, as Orthanc does. It then looks whole wherever it ends. One
of several parts has a mark at its end, which dicomweb-client does not ask for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from email.message import Message
from typing import Any

import requests

MARGIN = 64
"""Bytes that may follow the mark: line ends."""


def watch_end(response: requests.Response, *_: Any, **__: Any) -> None:
    """Makes reading an answer of several parts fail if it has no end; a hook of requests.

    Raises:
        requests.exceptions.InvalidHeader: it says neither how long it is nor what divides its parts.
    """
    kind = Message()
    kind["Content-Type"] = response.headers.get("Content-Type", "")
    boundary = kind.get_boundary()
    if kind.get_content_maintype() == "multipart" and boundary:
        response.iter_content = _watched(response.iter_content, f"--{boundary}--".encode())  # type: ignore[method-assign]
    elif kind.get_content_maintype() == "multipart" or (kind.get_content_subtype() == "dicom" and not _tells(response)):
        response.close()
        raise requests.exceptions.InvalidHeader("no end")


def _tells(response: requests.Response) -> bool:
    """Whether an answer says how long it is."""
    chunked = "chunked" in response.headers.get("Transfer-Encoding", "").lower()
    return chunked or "Content-Length" in response.headers


def _watched(read: Callable[..., Iterator[Any]], mark: bytes) -> Callable[..., Iterator[Any]]:
    def chunks(*args: Any, **kwargs: Any) -> Iterator[Any]:
        tail = b""
        for chunk in read(*args, **kwargs):
            tail = (tail + chunk)[-len(mark) - MARGIN :]
            yield chunk
        if mark not in tail:
            raise requests.exceptions.ChunkedEncodingError("no end")

    return chunks
