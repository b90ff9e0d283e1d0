"""Runs `voxtile batch --manifest` as a process of its own, watches it, and kills it where it is told to.

Knows nothing of figures.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

SUFFIX = ".nii.gz"
LOOKS_EVERY_S = 0.05


@dataclass
class Run:
    """What was seen of one process.

    Attributes:
        before: the masks that were there when it began.
        seen: its seconds, the masks that were there, and its resident bytes, each time that somebody looked.
        code: its exit code; -9 where it was killed.
    """

    before: int
    seen: list[tuple[float, int, int]] = field(default_factory=list)
    code: int = 0

    @property
    def first_s(self) -> float:
        """The seconds from its start to its first new mask."""
        return next(seconds for seconds, masks, _ in self.seen if masks > self.before)

    def between(self, begin: float, end: float) -> list[tuple[float, int, int]]:
        """What was seen between two shares of its masks, from 0 to 1."""
        last = self.seen[-1][1]
        least, most = (self.before + share * (last - self.before) for share in (begin, end))
        return [one for one in self.seen if least <= one[1] <= most]

    def seconds_a_case(self, begin: float, end: float) -> float:
        """The seconds from mask to mask, between two shares of its masks."""
        seen = self.between(begin, end)
        (first_s, first, _), (last_s, last, _) = seen[0], seen[-1]
        return (last_s - first_s) / max(last - first, 1)

    def largest_bytes(self, begin: float, end: float) -> int:
        """The largest resident memory that was seen between two shares of its masks."""
        return max(rss for _, _, rss in self.between(begin, end))


def batch(manifest: Path, place: Path, model: str, url: str, kill_at: int | None = None) -> Run:
    """Runs a batch to its end, or kills it once so many masks are there."""
    words = ["batch", "--manifest", manifest, "--out", place, "--model", model, "--url", url, "--quiet"]
    run, begin = Run(len(masks(place))), time.perf_counter()
    with subprocess.Popen([sys.executable, "-m", "voxtile", *map(str, words)], stdout=subprocess.DEVNULL) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            count = len(masks(place))
            run.seen.append((time.perf_counter() - begin, count, _resident(watched)))
            if kill_at is not None and count >= kill_at:
                process.kill()
                break
            time.sleep(LOOKS_EVERY_S)
        run.code = process.wait()
    run.seen.append((time.perf_counter() - begin, len(masks(place)), run.seen[-1][2]))
    return run


def masks(place: Path) -> dict[str, tuple[int, int]]:
    """The masks that are there: of each its inode and the nanosecond in which it was written."""
    files = [file for file in place.glob(f"*{SUFFIX}") if not file.name.startswith(".")]
    return {file.name.removesuffix(SUFFIX): (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


def lines(place: Path) -> Sequence[dict[str, Any]]:
    """All lines that the runs have written."""
    (file,) = (place / ".voxtile-batch" / "shards").glob("*.jsonl")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:  # it has just ended
        return 0
