"""The gateway's routes: each takes a request apart, hands it to models and jobs, and puts the answer together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException

from voxtile import Options
from voxtile.errors import VoxtileError
from voxtile_server import __version__
from voxtile_server.gateway.answers import EVENTS, events, headers_of
from voxtile_server.gateway.dicom.routes import dicom_routes
from voxtile_server.gateway.failures import HttpFailure, failure_of, storage_failure_of
from voxtile_server.gateway.intake import Intake, asked_of
from voxtile_server.gateway.jobs import MASK, Board, Job
from voxtile_server.gateway.lingering import Lingering
from voxtile_server.gateway.metrics.metrics import Metrics
from voxtile_server.gateway.metrics.offered import Offered
from voxtile_server.gateway.models import Models
from voxtile_server.gateway.monailabel.routes import SIGN_IN, monailabel_routes
from voxtile_server.gateway.monailabel.store import Store
from voxtile_server.gateway.page.routes import PAGE, add_page
from voxtile_server.gateway.settings import Settings
from voxtile_server.gateway.tokens import OnlyWithToken, Tokens
from voxtile_server.gateway.uploads import take_files

OPEN = ("/health/live", "/health/ready", *SIGN_IN, *PAGE)
"""What may be asked without a token."""

TIDY_S = 5.0
"""Seconds between two looks for what has been kept for long enough."""

SCAN = {"requestBody": {"required": True, "content": {"application/octet-stream": {}, "multipart/form-data": {}}}}


def make_app(settings: Settings) -> FastAPI:
    """The gateway as an ASGI application.

    Args:
        settings: how it works.
    """
    models = Models(settings.urls, settings.connection, Options(max_ram_mib=settings.max_ram_mib))
    offered = Offered(settings.urls, models.listed)
    metrics = Metrics(settings.at_once + settings.waiting, offered)
    tokens = Tokens(settings.token_file)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        board = Board(settings.at_once, settings.waiting, settings.keep_s, settings.folder)
        store = Store(board.folder, settings.datastore_bytes, settings.datastore_keep_s)
        app.state.intake, app.state.store = Intake(board, models, metrics), store
        metrics.watch(lambda: board.busy)
        tidying = asyncio.create_task(_tidy([board.forget_old, store.forget_old]))
        try:
            yield
        finally:
            tidying.cancel()
            await board.close()
            await asyncio.to_thread(models.forget_all)

    # The pages of FastAPI's own load their scripts from elsewhere; the description itself is at /openapi.json.
    app = FastAPI(title="Voxtile gateway", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    if tokens.wanted:
        app.add_middleware(OnlyWithToken, tokens=tokens, free=OPEN)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.origins),
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=["Voxtile-Report", "Voxtile-Job", "Retry-After"],
        )

    app.add_middleware(Lingering)  # around the others, for their refusals too
    add_page(app)

    @app.exception_handler(HttpFailure)
    async def refused(_: Request, error: HttpFailure) -> Response:
        metrics.refused(error.status)
        return JSONResponse({"error": str(error)}, error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        text = f"{request.method} {request.url.path}: {error.detail}; /openapi.json lists what there is"
        return await refused(request, HttpFailure(error.status_code, text))

    @app.exception_handler(VoxtileError)
    async def failed(request: Request, error: VoxtileError) -> Response:
        return await refused(request, failure_of(error, ""))

    @app.exception_handler(OSError)
    async def not_stored(request: Request, error: OSError) -> Response:
        return await refused(request, storage_failure_of(error))

    @app.get("/health/live")
    async def live() -> dict[str, str]:
        """Whether the gateway runs."""
        return {"state": "live"}

    @app.get("/health/ready")
    async def ready() -> dict[str, str]:
        """Whether a Triton server answers behind it."""
        await asyncio.to_thread(models.listed)
        return {"state": "ready"}

    @app.get("/metrics")
    async def measured() -> Response:
        """Counters and gauges for Prometheus."""
        for _, card in (await offered.renew()).cards.values():
            metrics.expect(card.name)  # that of its versions too
        return PlainTextResponse(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def listed() -> list[dict[str, Any]]:
        """The models, each with its card."""
        return [listing.as_json() for listing in await asyncio.to_thread(models.listed)]

    @app.post("/v1/models/{name}/mask", openapi_extra=SCAN)
    async def mask(name: str, request: Request) -> Response:
        """Segments the scan in the body and answers with its mask; with `Accept: text/event-stream`, with progress."""
        job = await _taken(name, request)
        if EVENTS in request.headers.get("accept", ""):
            return StreamingResponse(
                events(_board(), job, cancel=True), media_type=EVENTS, headers={"Voxtile-Job": job.id}
            )
        await _intake().ended(job, request)
        return await _mask(job, once=True)

    @app.post("/v1/models/{name}/jobs", status_code=202, openapi_extra=SCAN)
    async def submit(name: str, request: Request) -> Response:
        """Takes the scan in the body and answers at once with the job's address."""
        job = await _taken(name, request)
        return JSONResponse(job.as_json(), 202, {"Location": f"/v1/jobs/{job.id}"})

    @app.get("/v1/jobs/{number}")
    async def asked(number: str, request: Request) -> Response:
        """How far a job is; with `Accept: text/event-stream`, all that follows too."""
        job = _board().find(number)
        if EVENTS in request.headers.get("accept", ""):
            return StreamingResponse(events(_board(), job, cancel=False), media_type=EVENTS)
        return JSONResponse(job.as_json())

    @app.get("/v1/jobs/{number}/mask")
    async def fetched(number: str) -> Response:
        """The mask of a job that is done."""
        return await _mask(_board().finished(number, "mask"), once=False)

    @app.delete("/v1/jobs/{number}", status_code=204)
    async def cancelled(number: str) -> Response:
        """Ends a job and removes what it has."""
        await _board().remove(_board().find(number))
        return Response(status_code=204)

    app.include_router(dicom_routes(settings))
    app.include_router(monailabel_routes(settings, models, tokens))

    def _intake() -> Intake:
        intake: Intake = app.state.intake
        return intake

    def _board() -> Board:
        return _intake().board

    async def _taken(name: str, request: Request) -> Job:
        """A job with the request's files and options, begun."""

        async def fill(job: Job) -> dict[str, Any]:
            job.files = await take_files(request, job.folder, settings.max_upload_bytes, settings.upload_timeout_s)
            return {}

        return await _intake().begin(name, asked_of(request), fill)

    async def _mask(job: Job, *, once: bool) -> Response:
        """The mask of a job that has ended; `once` forgets the job when it is sent."""
        if job.failure is not None:
            raise job.failure
        return FileResponse(
            job.mask,
            media_type="application/gzip",
            filename=MASK,
            headers=headers_of(job),
            background=BackgroundTask(_board().remove, job) if once else None,
        )

    return app


async def _tidy(forget: Sequence[Callable[[], None]]) -> None:
    """Removes what is old also where nobody calls."""
    while True:
        await asyncio.sleep(TIDY_S)
        for each in forget:
            each()
