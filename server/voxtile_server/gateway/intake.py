"""Takes scans in: a place on the board, the scan's files, and the work on them. Every door of the gateway leads here.

Knows nothing of routes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from starlette.requests import Request

from voxtile import Segmenter
from voxtile.errors import OtherBuildError
from voxtile.io.writing import write_image
from voxtile.job import Progress
from voxtile.outputs.report import Report
from voxtile_server.gateway.failures import HttpFailure
from voxtile_server.gateway.jobs import Board, Job, Work
from voxtile_server.gateway.metrics.metrics import Metrics
from voxtile_server.gateway.models import Models
from voxtile_server.gateway.waiting import on_own_thread

GONE_POLL_S = 0.2

Make = Callable[[Segmenter, Job, Progress], Awaitable[Report]]
"""Segments the files of a job, writes what it gives, and returns the report. Cancelling it stops the work."""

Fill = Callable[[Job], Awaitable[Mapping[str, Any]]]
"""Puts the scan's files into `job.files`, and returns the options that came with them."""


async def make_mask(segmenter: Segmenter, job: Job, progress: Progress) -> Report:
    """Writes the mask of a scan."""
    image = job.files if len(job.files) > 1 else job.files[0]
    segmentation = await segmenter.asegment(image, progress)
    await asyncio.to_thread(write_image, segmentation.mask, job.mask, segmentation.place)
    return segmentation.report


def asked_of(request: Request) -> dict[str, Any]:
    """The options behind a request's question mark; a series may be named for each channel."""
    query = request.query_params
    return {name: query.getlist(name) if name == "series" else query[name] for name in query}


class Intake:
    """Begins jobs.

    Args:
        board: where they are kept.
        models: what segments.
        metrics: what counts.
    """

    def __init__(self, board: Board, models: Models, metrics: Metrics) -> None:
        self.board = board
        self._models = models
        self._metrics = metrics

    async def begin(self, model: str, asked: Mapping[str, Any], fill: Fill, make: Make = make_mask) -> Job:
        """Takes a scan in and begins its job.

        Args:
            model: the model's public name.
            asked: the options that are known before a byte of the scan is taken.
            fill: takes the scan.
            make: does the work.

        Raises:
            HttpFailure: all places are taken, or `fill` refuses the scan.
            VoxtileError: there is no such model, an option is wrong, or no server answers.
        """
        job = self.board.admit(model)
        try:
            segmenter = await on_own_thread(partial(self._models.segmenter, model, asked))
            if more := await fill(job):
                segmenter = await on_own_thread(partial(self._models.segmenter, model, {**asked, **more}))
        except BaseException:
            self.board.drop(job)
            raise
        job.labels = segmenter.card.labels
        self.board.start(job, self._work(segmenter, make))
        return job

    async def ended(self, job: Job, request: Request) -> None:
        """Waits for the end of a job, and ends and forgets it where the caller goes away meanwhile.

        Raises:
            HttpFailure: the caller has gone; or why the job failed, which is forgotten then.
        """
        ended = asyncio.create_task(job.ended())
        try:
            while not ended.done():
                if await request.is_disconnected():
                    await self.board.remove(job)
                    raise HttpFailure(499, "the caller has gone")
                await asyncio.wait([ended], timeout=GONE_POLL_S)
        finally:
            ended.cancel()
        if job.failure is not None:
            await self.board.remove(job)
            raise job.failure

    def _work(self, segmenter: Segmenter, make: Make) -> Work:
        model = segmenter.card.name  # not as the caller wrote it, who may ask for a version: as reports name it

        async def work(job: Job, progress: Progress) -> dict[str, Any]:
            self._metrics.expect(model)
            try:
                made = await make(segmenter, job, progress)
            except Exception as error:
                self._metrics.failed(model, error)
                if isinstance(error, OtherBuildError):
                    self._models.forget_all()  # the next scan asks the server anew
                raise
            finally:
                self._metrics.scanned(model)
                await asyncio.to_thread(segmenter.close)
            self._metrics.measured(made, segmenter.card)
            report: dict[str, Any] = made.model_dump(mode="json")
            return report

        return work
