"""One measured way in a process of its own: made ready once, then run whenever it is its turn.

The parent writes one JSON job, then a line for each run; the process answers each with one JSON object. A process a
way keeps peak memory apart and lets repetitions of different ways take turns without loading anything twice.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

ROOT = Path(__file__).parent.parent


class WorkerError(Exception):
    """A way could not be made ready or failed; the text is its last line of complaint."""


class Worker:
    """A process that runs `job` (see `ways.WAYS`); use it as a context manager.

    Raises WorkerError where it cannot be made ready.
    """

    def __init__(self, job: Mapping[str, Any], log: Path, environment: Mapping[str, str] | None = None) -> None:
        self._log = log
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bench.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=ROOT,
                env={**os.environ, **(environment or {})},
            )
        try:
            self.ready = self._ask(job)
        except WorkerError:
            self.close()
            raise

    def __call__(self) -> dict[str, Any]:
        """One run; what the way tells of it."""
        return self._ask({})

    def close(self) -> None:
        """Ends the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None and not pipe.closed:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        if self._process.stdin is None or self._process.stdout is None:
            raise WorkerError("the process has no pipes")
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise WorkerError(self._complaint()) from None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise WorkerError(self._complaint())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _complaint(self) -> str:
        lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return (lines or [f"it ended with code {self._process.returncode}"])[-1][:300]


def serve(questions: IO[str], answers: IO[str]) -> None:
    """The child's side: make the way ready, then run it once a line."""
    from .ways import WAYS, forget_peak, peak_rss_bytes, rss_bytes

    job = json.loads(questions.readline())
    way = WAYS[job["way"]](job)
    forget_peak()  # what loading took is not what a scan takes
    _answer(answers, {"ready": True, "rss_bytes": rss_bytes()})
    for _ in questions:
        told = way()
        _answer(answers, {"peak_rss_bytes": peak_rss_bytes(), **told})


def _answer(answers: IO[str], content: Mapping[str, Any]) -> None:
    answers.write(json.dumps(content) + "\n")
    answers.flush()


if __name__ == "__main__":
    # What libraries print must not get between the answers.
    private = os.dup(1)
    os.dup2(2, 1)
    with os.fdopen(private, "w") as out:
        serve(sys.stdin, out)
