"""Runs a way once before it is measured. Knows nothing of what a way does."""

from __future__ import annotations

from ..engines import Job, Way
from ..turns import Make


def warmed(make: Make, job: Job) -> Way:
    """Makes a way ready after a run of it on a small scan: what a job's `warm_up` holds replaces the job's own."""
    make({**job, **job["warm_up"]})()
    return make(job)
