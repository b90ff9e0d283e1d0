"""The route `/infer/{model}`: a scan in the request, in a session or in the datastore; its mask in the answer."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.background import BackgroundTask

from voxtile_server.gateway.failures import HttpFailure
from voxtile_server.gateway.jobs import Job
from voxtile_server.gateway.monailabel.answer import form_with
from voxtile_server.gateway.monailabel.door import Door, files_in
from voxtile_server.gateway.monailabel.names import names_by_place, values_by_name
from voxtile_server.gateway.monailabel.params import read_params
from voxtile_server.gateway.uploads import Form

OUTPUTS = ("", "all", "image", "json")
FORM: dict[str, Any] = {"requestBody": {"content": {"multipart/form-data": {}}}}


def infer_routes(door: Door) -> APIRouter:
    """The route."""
    router = APIRouter(tags=["MONAI Label"])

    @router.post("/infer/{model}", openapi_extra=FORM)
    async def infer(model: str, request: Request, image: str = "", session_id: str = "", output: str = "") -> Response:
        """Segments the form's `file`, a session's image or an image of the datastore."""
        if output not in OUTPUTS:
            status = 501 if output == "dicom_seg" else 422
            raise HttpFailure(status, f"expected an output out of image, json and all, found {output[:40]!r}")

        async def fill(job: Job) -> dict[str, Any]:
            form = await door.form(request, job.folder)
            asked = read_params(form.texts.get("params", ""))
            job.mask_name = f"mask{asked.ending}"
            job.files = await _scan(form, job, request, image, session_id)
            return asked.options

        intake = door.intake(request)
        job = await intake.begin(model, {}, fill)
        await intake.ended(job, request)
        return _answer(job, output, request)

    async def _scan(form: Form, job: Job, request: Request, image: str, session_id: str) -> list[Path]:
        """The files of the scan, in the job's own folder."""
        if any(file.field == "label" for file in form.files):
            raise HttpFailure(
                422, "expected a scan alone, found a label too; no model here follows clicks or scribbles"
            )
        sent = [file.path for file in files_in(form, "file")]
        if sent and session_id:
            raise HttpFailure(422, "expected one scan, found two: a file and a session; leave out one of them")
        if sent:
            return sent
        if not session_id and not image:
            raise HttpFailure(422, "expected a scan: a file, or ?session_id= or ?image=, found none of them")
        store, caller = door.store(request), door.caller(request)
        stored = store.session(caller, session_id) if session_id else store.image(caller, image)
        return await asyncio.to_thread(_linked, list(stored.files), job.folder)

    def _answer(job: Job, output: str, request: Request) -> Response:
        board = door.intake(request).board
        params = {"label_names": names_by_place(values_by_name(job.labels)), "report": job.report}
        if output == "json":
            return JSONResponse(params, background=BackgroundTask(board.remove, job))
        name = f"mask-{secrets.token_hex(8)}{job.mask_name.removeprefix('mask')}"
        if output == "image":
            after = BackgroundTask(board.remove, job)
            return FileResponse(job.mask, media_type="application/octet-stream", filename=name, background=after)
        return form_with(params, job.mask, name, lambda: board.remove(job))

    return router


def _linked(files: list[Path], folder: Path) -> list[Path]:
    """Files of the store under names in a job's folder, so that neither the job nor the store removes the other's.

    Raises:
        HttpFailure: 404, they have been removed meanwhile.
    """
    made = [folder / file.name for file in files]
    try:
        for file, path in zip(files, made, strict=True):
            try:
                os.link(file, path)
            except FileNotFoundError:
                raise
            except OSError:  # a file system without links
                shutil.copyfile(file, path)
    except FileNotFoundError:
        raise HttpFailure(404, "the scan has been removed meanwhile; send it again") from None
    return made
