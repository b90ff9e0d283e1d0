"""The routes of DICOM: a series in the body, objects about it in the answer, at once or as a job."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.background import BackgroundTasks

from voxtile_server.gateway.answers import EVENTS, events, headers_of
from voxtile_server.gateway.dicom.answer import ALONE, RELATED, ZIP, answer, form_for
from voxtile_server.gateway.dicom.asked import PARAMETERS, Asked, read_asked
from voxtile_server.gateway.dicom.sent import Limits, take_series
from voxtile_server.gateway.dicom.work import making
from voxtile_server.gateway.intake import Intake, asked_of
from voxtile_server.gateway.jobs import Job
from voxtile_server.gateway.settings import Settings

SERIES: dict[str, Any] = {
    "requestBody": {"required": True, "content": {ZIP: {}, ALONE: {}, RELATED: {}, "multipart/form-data": {}}},
    "parameters": PARAMETERS,
}
OBJECTS: dict[int | str, dict[str, Any]] = {200: {"content": {ALONE: {}, RELATED: {}, ZIP: {}, EVENTS: {}}}}


def dicom_routes(settings: Settings) -> APIRouter:
    """The routes; `app.state` has the intake.

    Args:
        settings: how the gateway works.
    """
    router = APIRouter(tags=["DICOM"])
    limits = Limits.of(settings)

    @router.post("/v1/models/{name}/dicom", openapi_extra=SERIES, responses=OBJECTS, response_class=Response)
    async def dicom(name: str, request: Request) -> Response:
        """Segments the series in the body and answers with a DICOM SEG, and more objects on request."""
        asked, accept = read_asked(asked_of(request)), request.headers.get("accept")
        if EVENTS in (accept or ""):
            job = await _taken(name, asked, request)
            stream = events(_intake(request).board, job, cancel=True)
            return StreamingResponse(stream, media_type=EVENTS, headers={"Voxtile-Job": job.id})
        form_for(accept, len(asked.kinds))  # says before any work that none fits
        job = await _taken(name, asked, request)
        await _intake(request).ended(job, request)
        return await _objects(job, request, once=True)

    @router.post("/v1/models/{name}/dicom/jobs", status_code=202, openapi_extra=SERIES)
    async def submit(name: str, request: Request) -> Response:
        """Takes the series in the body and answers at once with the job's address."""
        job = await _taken(name, read_asked(asked_of(request)), request)
        return JSONResponse(job.as_json(), 202, {"Location": f"/v1/jobs/{job.id}"})

    @router.get("/v1/jobs/{number}/dicom", responses=OBJECTS, response_class=Response)
    async def fetched(number: str, request: Request) -> Response:
        """The objects of a job that is done."""
        job = _intake(request).board.finished(number, "dicom")
        return await _objects(job, request, once=False)

    async def _taken(name: str, asked: Asked, request: Request) -> Job:
        """A job with the request's series and options, begun."""

        async def fill(job: Job) -> dict[str, Any]:
            job.gives = "dicom"
            job.files = await take_series(request, job.folder, limits)
            return {}

        return await _intake(request).begin(name, asked.options, fill, making(asked))

    return router


def _intake(request: Request) -> Intake:
    intake: Intake = request.app.state.intake
    return intake


async def _objects(job: Job, request: Request, *, once: bool) -> Response:
    """The objects of a job that has ended; `once` forgets the job when they are sent."""
    if job.failure is not None:
        raise job.failure
    files = [*job.objects.values()]
    after = BackgroundTasks()
    if once:
        after.add_task(_intake(request).board.remove, job)
    form = form_for(request.headers.get("accept"), len(files))
    return await asyncio.to_thread(answer, files, form, headers_of(job), job.folder, after)
