"""The work of a job that makes DICOM objects about a series. Knows nothing of requests."""

from __future__ import annotations

import contextlib

from voxtile import Segmenter
from voxtile.dicom_case import CaseDone, CaseOutputs, segment_series
from voxtile.errors import OutputError
from voxtile.io.dicom.read import holds_dicom
from voxtile.job import Cancellation, Progress, cancellable
from voxtile.outputs.report import Report
from voxtile_server.gateway.dicom.asked import Asked
from voxtile_server.gateway.failures import HttpFailure
from voxtile_server.gateway.intake import Make
from voxtile_server.gateway.jobs import Job

FOUND = "found"
"""The folder of a job that its objects lie in."""


def making(asked: Asked) -> Make:
    """What makes the objects that are asked for, and puts them into `job.objects`."""

    async def make(segmenter: Segmenter, job: Job, progress: Progress) -> Report:
        outputs = CaseOutputs(job.folder / FOUND, asked.kinds, asked.seg)

        def work(cancellation: Cancellation) -> CaseDone:
            for source in job.files:
                if not holds_dicom(source):  # it would be read as another format
                    text = "expected the objects of a DICOM series, found none; a zip in a zip is not looked into"
                    raise HttpFailure(422, f"{source.relative_to(job.folder)}: {text}")
            showing = contextlib.nullcontext(progress)
            done = segment_series(segmenter, job.files, outputs, showing=showing, cancellation=cancellation)
            if done.failures:
                raise OutputError("; ".join(done.failures))
            return done

        done = await cancellable(work)
        job.objects = {kind: done.objects[kind] for kind in asked.kinds}
        return done.report

    return make
