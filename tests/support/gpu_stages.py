"""Stages that end well, and stages that do not. In a file of their own: each stage's process imports it."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator

from bench.gpu.settings import Known, Row, Settings


def good(_: Settings, known: Known) -> Iterator[Row]:
    yield {"what": "one", "known": sorted(known)}
    yield {"what": "two"}


def failing(*_: object) -> Iterator[Row]:
    yield {"what": "before"}
    raise MemoryError("CUDA out of memory.\nTried to allocate 9 GiB")


def dying(*_: object) -> Iterator[Row]:
    yield {"what": "before"}
    os._exit(7)


def hanging(*_: object) -> Iterator[Row]:
    child = subprocess.Popen(["sleep", "600"])
    yield {"what": "before", "child": child.pid}
    time.sleep(600)
    yield {"what": "after"}
