"""The routes below `/session/`: a scan that a client sends once and has segmented several times."""

from __future__ import annotations

import math
import time
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, JSONResponse, Response

from voxtile_server.gateway.failures import HttpFailure
from voxtile_server.gateway.monailabel.door import Door, ending_of, files_in
from voxtile_server.gateway.monailabel.store import Stored


def session_routes(door: Door) -> APIRouter:
    """The routes."""
    router = APIRouter(prefix="/session", tags=["MONAI Label"])

    @router.put("/")
    async def create(request: Request, expiry: str = "0") -> dict[str, Any]:
        """Keeps the form's `files`, one for each channel or one for all, as the image of a session.

        An archive of DICOM objects is read as it is, so `uncompress` changes nothing.
        """
        if not (expiry.isascii() and expiry.isdecimal() and len(expiry) < 10):
            raise HttpFailure(422, f"expected a whole number of seconds for expiry, found {expiry[:40]!r}")
        store = door.store(request)
        with store.arriving(door.announced(request)) as one:
            form = await door.form(request, one.folder, partial(store.grow, one))
            files = files_in(form, "files", "file")
            if not files:
                raise HttpFailure(422, "expected a scan in the field 'files', found none")
            one.files, one.ending = [file.path for file in files], ending_of(files)
            number = store.keep_session(door.caller(request), one, int(expiry))
        return {"session_id": number, "session_info": _said(number, one)}

    @router.get("/{number}")
    async def get(number: str, request: Request, image: str = "false") -> Response:
        """What there is to say of a session, or its image."""
        store = door.store(request)
        one = store.session(door.caller(request), number)
        if image.lower() in ("true", "1"):
            name = f"image{one.ending}"
            return FileResponse(one.files[0], media_type="application/octet-stream", filename=name)
        return JSONResponse(_said(number, one))

    @router.delete("/{number}")
    async def remove(number: str, request: Request) -> dict[str, Any]:
        """Ends a session."""
        store, caller = door.store(request), door.caller(request)
        said = _said(number, store.session(caller, number))
        store.remove_session(caller, number)
        return said

    return router


def _said(number: str, one: Stored) -> dict[str, Any]:
    """A session as MONAI Label describes one; `path` and `image` are the gateway's own business."""
    return {
        "name": number,
        "path": "",
        "image": "",
        "meta": {},
        "create_ts": int(one.made_at),
        "last_access_ts": int(time.time()),
        "expiry": math.ceil(one.keep_s),
    }
