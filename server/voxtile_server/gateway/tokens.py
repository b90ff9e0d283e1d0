"""Bearer tokens: who may call, and whom a request is from. Knows nothing of scans."""

from __future__ import annotations

import hmac
from collections.abc import Container
from pathlib import Path

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send


class Tokens:
    """The tokens that an operator gave out.

    Args:
        file: one token a line; None for none, where everybody may call.

    Raises:
        ValueError: the file cannot be read, or has none.
    """

    def __init__(self, file: Path | None) -> None:
        self._tokens = () if file is None else _tokens(file)

    @property
    def wanted(self) -> bool:
        """Whether a caller needs one."""
        return bool(self._tokens)

    def knows(self, token: bytes) -> bool:
        """Whether a token, in UTF-8, is one of them."""
        matches = [hmac.compare_digest(token, one.encode()) for one in self._tokens]  # all, so that time tells nothing
        return any(matches)

    def caller(self, authorization: bytes) -> bytes:
        """Whom a request with this header `Authorization` is from; the same for everybody where no token is needed."""
        return authorization.removeprefix(b"Bearer ") if self.wanted else b""


class OnlyWithToken:
    """Refuses whoever has no bearer token.

    Args:
        app: what is kept.
        tokens: the tokens.
        free: paths that need none.
    """

    def __init__(self, app: ASGIApp, tokens: Tokens, free: Container[str]) -> None:
        self._app, self._tokens, self._free = app, tokens, free

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._free or self._known(dict(scope["headers"])):
            await self._app(scope, receive, send)
            return
        text = "expected the header Authorization: Bearer TOKEN with a token that the operator gave out"
        refusal = JSONResponse({"error": text}, 401, {"WWW-Authenticate": "Bearer", "Connection": "close"})
        await refusal(scope, receive, send)

    def _known(self, headers: dict[bytes, bytes]) -> bool:
        return self._tokens.knows(self._tokens.caller(headers.get(b"authorization", b"")))


def _tokens(file: Path) -> tuple[str, ...]:
    """The tokens in a file, one a line; raises ValueError where there is none, or the file cannot be read."""
    try:
        found = tuple(line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
    except OSError as error:
        raise ValueError(f"--token-file: {file} cannot be read ({error.strerror})") from None
    if not found:
        raise ValueError(f"--token-file: expected a token in {file}, found none")
    return found
