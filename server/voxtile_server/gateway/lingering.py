"""Lets a caller who is still sending read why it is refused. Knows nothing of reasons.

Many clients read nothing before all is sent. If their connection is closed in the midst of that, they see a broken
connection in place of the answer. So the answer goes out at once, and what still comes is thrown away for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

IDLE_S = 2.0
"""Seconds without a byte after which the connection is closed."""

LONGEST_S = 60.0
"""Seconds after which it is closed, whatever comes."""


class Lingering:
    """Closes connections that an answer ends only when the request has come to its end, or after a while.

    Args:
        app: what answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(receive, send)
        await self._app(scope, exchange.receive, exchange.send)


@dataclass
class _Exchange:
    """One request and its answer."""

    receive_more: Receive
    send_on: Send
    come: bool = False  # whether the whole request has
    closes: bool = False

    async def receive(self) -> Message:
        message = await self.receive_more()
        self.come = self.come or message["type"] == "http.disconnect" or not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = {name.lower(): value.lower() for name, value in message["headers"]}
            self.closes = headers.get(b"connection") == b"close"
        last = message["type"] == "http.response.body" and not message.get("more_body", False)
        if not last or not self.closes or self.come:
            await self.send_on(message)
            return
        await self.send_on({**message, "more_body": True})
        await self._throw_away()
        await self.send_on({"type": "http.response.body", "body": b"", "more_body": False})

    async def _throw_away(self) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._until_come(), LONGEST_S)

    async def _until_come(self) -> None:
        while not self.come:
            await asyncio.wait_for(self.receive(), IDLE_S)
