"""Routes of the page: `/` and its files, with headers that let it load nothing else. Knows nothing of models."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.types import Scope

from voxtile.outputs.page.pack import COMMAND, PLACE
from voxtile_server.gateway.failures import HttpFailure

STATIC = Path(__file__).with_name("static")
SHARED = PLACE.parent
"""What the client's report draws with, too: NiiVue, its licence, and what drives it."""

PREFIX = "/page"
FILES = sorted({PLACE.name, *(file.name for folder in (STATIC, SHARED) for file in folder.iterdir())})
PAGE = ("/", *(f"{PREFIX}/{name}" for name in FILES))
"""The paths of the page. It holds nothing secret, so a token is asked for what it calls, not for itself."""

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",  # NiiVue's letters are a picture in its script
        "connect-src 'self' data: blob:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # asked for anew each time, sent anew only when it has changed
}


def add_page(app: FastAPI) -> None:
    """Serve the page at `/` and its files below `/page/`. Its addresses are relative, so a prefix changes nothing."""

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page() -> Response:
        return FileResponse(STATIC / "index.html", headers=HEADERS)

    app.mount(PREFIX, _Files(directory=STATIC, packages=[("voxtile.outputs.page", SHARED.name)]))


class _Files(StaticFiles):
    async def get_response(self, path: str, scope: Scope) -> Response:
        if path == PLACE.name and not PLACE.is_file():
            text = (
                f"the viewer NiiVue is not packed into this gateway; the operator packs it with {COMMAND} (needs npm)"
            )
            raise HttpFailure(404, text)
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response
