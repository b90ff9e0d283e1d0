"""Scans on their way: a bounded number at once, a bounded number waiting, and their masks for a while.

Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from voxtile.card import Label
from voxtile.io.private_folder import private_folder
from voxtile_server.gateway.failures import HttpFailure, failure_of

State = Literal["waiting", "running", "done", "failed", "cancelled"]
ENDED = ("done", "failed", "cancelled")
Gives = Literal["mask", "dicom"]
MASK = "mask.nii.gz"
RETRY_AFTER_S = 10
BETWEEN_S = 0.1
"""Seconds between two events of progress."""

Work = Callable[["Job", Callable[[int, int], None]], Awaitable[dict[str, Any]]]
"""Segments the files of a job, writes `job.mask`, and gives the report. Cancelling it stops the work."""


@dataclass(eq=False)
class Job:
    """One scan.

    Attributes:
        id: cannot be guessed.
        model: the model's public name.
        folder: its files; removed with the job.
        files: what was uploaded, one a channel or one for all; a folder of DICOM objects is one.
        gives: what it makes, and the end of the address where it can be fetched.
        objects: the DICOM objects of a finished one, by kind.
        mask_name: the mask's file; its ending decides the format.
        labels: what the values of the mask are; known once the job has begun.
        state: how far it is.
        done: tiles that are done.
        total: tiles.
        report: the report of a finished one.
        failure: why a failed one failed.
    """

    model: str
    folder: Path
    files: list[Path] = field(default_factory=list)
    gives: Gives = "mask"
    objects: dict[str, Path] = field(default_factory=dict)
    mask_name: str = MASK
    labels: tuple[Label, ...] = ()
    id: str = field(default_factory=lambda: secrets.token_urlsafe(12))
    state: State = "waiting"
    done: int = 0
    total: int = 0
    report: dict[str, Any] | None = None
    failure: HttpFailure | None = None
    ended_at: float = 0.0
    task: asyncio.Task[None] | None = None
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def mask(self) -> Path:
        return self.folder / self.mask_name

    @property
    def share(self) -> float:
        """How much of it is done, 0 to 1."""
        return 1.0 if self.state == "done" else self.done / self.total if self.total else 0.0

    def as_json(self) -> dict[str, Any]:
        """What a caller is told of it."""
        return {
            "id": self.id,
            "model": self.model,
            "state": self.state,
            "progress": round(self.share, 4),
            self.gives: f"/v1/jobs/{self.id}/{self.gives}" if self.state == "done" else None,
            "report": self.report,
            "error": str(self.failure) if self.failure else None,
        }

    def tell(self) -> None:
        """Wakes all who watch."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def changes(self) -> AsyncIterator[Job]:
        """The job after each change, at most every BETWEEN_S, the last time when it has ended."""
        while True:
            changed = self._changed
            yield self
            if self.state in ENDED:
                return
            await changed.wait()
            await asyncio.sleep(0 if self.state in ENDED else BETWEEN_S)

    async def ended(self) -> None:
        """Waits for its end."""
        async for _ in self.changes():
            pass


class Board:
    """All jobs.

    Args:
        at_once: that run at once.
        waiting: that may wait.
        keep_s: seconds for which a job is kept after its end.
        folder: where their files lie; None for the system's temporary folder.

    Attributes:
        folder: a folder of its own in there, which `close` removes with all that is in it; after a gateway that was
            killed, the next one does.
    """

    def __init__(self, at_once: int, waiting: int, keep_s: float, folder: Path | None) -> None:
        self._slots = asyncio.Semaphore(at_once)
        self._most = at_once + waiting
        self._keep_s = keep_s
        self._made = contextlib.ExitStack()
        self.folder = self._made.enter_context(private_folder("gateway", folder))
        self._jobs: dict[str, Job] = {}
        self._admitted: set[Job] = set()

    @property
    def busy(self) -> int:
        """Jobs that run or wait, those that are being uploaded among them."""
        return len(self._admitted)

    def admit(self, model: str) -> Job:
        """A place for a new job.

        Raises:
            HttpFailure: 429, where all places are taken.
        """
        self.forget_old()
        if len(self._admitted) >= self._most:
            text = f"{self._most} scans are running or waiting already; try again later"
            raise HttpFailure(429, text, {"Retry-After": str(RETRY_AFTER_S), "Connection": "close"})
        job = Job(model, Path(tempfile.mkdtemp(dir=self.folder)))
        self._admitted.add(job)
        return job

    def start(self, job: Job, work: Work) -> None:
        """Begins a job once there is a slot for it."""
        self._jobs[job.id] = job
        job.task = asyncio.create_task(self._run(job, work))

    def drop(self, job: Job) -> None:
        """Gives the place of a job back that was not started."""
        self._admitted.discard(job)
        shutil.rmtree(job.folder, ignore_errors=True)

    def find(self, number: str) -> Job:
        """The job.

        Raises:
            HttpFailure: 404.
        """
        self.forget_old()
        if number not in self._jobs:
            raise HttpFailure(404, "there is no such job; masks are kept for a while after a job's end")
        return self._jobs[number]

    def finished(self, number: str, gives: Gives) -> Job:
        """The job, for what it has made.

        Raises:
            HttpFailure: 404, there is none that makes this; 409, it has not ended.
        """
        job = self.find(number)
        if job.gives != gives:
            raise HttpFailure(404, f"the job makes {job.gives}, and no {gives}; ask for /v1/jobs/ID/{job.gives}")
        if job.state not in ENDED:
            raise HttpFailure(409, f"the job is {job.state}; ask for its {gives} when it is done")
        return job

    async def cancel(self, job: Job) -> None:
        """Ends a job and waits until its work has ended."""
        if job.task is not None and not job.task.done():
            job.task.cancel()
            await asyncio.wait([job.task])

    async def remove(self, job: Job) -> None:
        """Ends a job and forgets it."""
        await self.cancel(job)
        self._jobs.pop(job.id, None)
        shutil.rmtree(job.folder, ignore_errors=True)

    async def close(self) -> None:
        """Ends all jobs and removes all files."""
        for job in list(self._jobs.values()):
            await self.remove(job)
        self._made.close()

    async def _run(self, job: Job, work: Work) -> None:
        loop = asyncio.get_running_loop()

        def progress(done: int, total: int) -> None:  # on another thread
            loop.call_soon_threadsafe(self._progressed, job, done, total)

        try:
            async with self._slots:
                job.state = "running"
                job.tell()
                job.report = await work(job, progress)
            job.state = "done"
        except asyncio.CancelledError:
            job.state = "cancelled"
            job.failure = HttpFailure(499, "cancelled")
        except Exception as error:
            job.state, job.failure = "failed", failure_of(error, str(job.folder))
        finally:
            job.ended_at = time.monotonic()
            self._admitted.discard(job)
            await asyncio.to_thread(_delete, job.files)
            job.tell()

    @staticmethod
    def _progressed(job: Job, done: int, total: int) -> None:
        job.done, job.total = done, total
        job.tell()

    def forget_old(self) -> None:
        """Removes the jobs that have been kept for long enough."""
        before = time.monotonic() - self._keep_s
        for number, job in list(self._jobs.items()):
            if job.state in ENDED and job.ended_at < before:
                del self._jobs[number]
                shutil.rmtree(job.folder, ignore_errors=True)


def _delete(places: Sequence[Path]) -> None:
    for place in places:
        if place.is_dir():
            shutil.rmtree(place, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                place.unlink(missing_ok=True)
