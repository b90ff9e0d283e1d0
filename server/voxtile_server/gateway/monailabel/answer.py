"""The form in which MONAI Label answers with a mask and what there is to say of it. Knows nothing of models."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from fastapi.responses import StreamingResponse

PIECE = 1 << 20


def form_with(params: dict[str, Any], file: Path, name: str, after: Callable[[], Awaitable[None]]) -> StreamingResponse:
    """A multipart form with a field `params` in JSON and a field `image` with a file, which is not read into memory.

    Args:
        params: the object in JSON.
        file: the file.
        name: what the client is to call it; letters, digits, dots and hyphens alone.
        after: done when all is sent, or when the client has gone before that.
    """
    between = secrets.token_hex(16)
    head = (
        f'--{between}\r\nContent-Disposition: form-data; name="params"\r\nContent-Type: application/json\r\n\r\n'
        f"{json.dumps(params)}\r\n"
        f'--{between}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode()
    tail = f"\r\n--{between}--\r\n".encode()
    length = len(head) + file.stat().st_size + len(tail)
    return StreamingResponse(
        _pieces(head, file, tail, after),
        media_type=f"multipart/form-data; boundary={between}",
        headers={"Content-Length": str(length)},
    )


async def _pieces(head: bytes, file: Path, tail: bytes, after: Callable[[], Awaitable[None]]) -> AsyncIterator[bytes]:
    try:
        yield head
        with file.open("rb") as stream:
            while piece := await asyncio.to_thread(stream.read, PIECE):
                yield piece
        yield tail
    finally:
        await after()
