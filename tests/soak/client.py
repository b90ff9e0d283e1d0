"""One client of the soak: segments scans until it is told to stop, and tells of each whether its mask was right.

    python -m tests.soak.client KIND SEED FOLDER CLOCK URL URL        ends when its standard input ends

Prints one line of JSON for each scan, and a last one with what it has left behind.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from tests.soak.clock import move_clock_of_voxtile
from tests.soak.scans import NAME, right_mask
from voxtile import ConnectionConfig, Segmenter
from voxtile.errors import ModelError, ServerUnavailable

KINDS = ("kept", "wire", "fresh", "cancelling")
"""kept: one Segmenter throughout; wire: without shared memory; fresh: a Segmenter for each scan; cancelling: an event
loop that cancels every third scan half-way."""

RECONNECT_S = 0.5


class Client:
    """Segments random ones of the scans in `folder`."""

    def __init__(self, kind: str, seed: int, folder: Path, urls: Sequence[str]) -> None:
        self.kind, self.urls = kind, list(urls)
        self.random = random.Random(seed)
        self.scans = sorted(folder.glob("scan-*.nii.gz"))
        self.masks = {path: right_mask(nib.load(path)) for path in self.scans}
        self.stopped = threading.Event()
        self.done = 0

    def run(self) -> None:
        """Segments until standard input ends."""
        threading.Thread(target=self._wait_for_the_end, daemon=True).start()
        segmenter = None
        while not self.stopped.is_set():
            segmenter = segmenter or self._connected()
            if segmenter is None:
                continue
            self._one(segmenter)
            if self.kind == "fresh":
                segmenter.close()
                segmenter = None
        if segmenter is not None:
            segmenter.close()
        _tell(event="end", threads=_threads(), **_taken())

    def _connected(self) -> Segmenter | None:
        """A Segmenter; None where no server offers the model just now, as while it is reloaded."""
        memory = False if self.kind == "wire" else None
        try:
            return Segmenter(
                self.urls, NAME, sw_batch_size=1, overlap=0.5, connection=ConnectionConfig(shared_memory=memory)
            )
        except (ServerUnavailable, ModelError) as error:
            _tell(event="no model", reason=str(error))
            self.stopped.wait(RECONNECT_S)
            return None

    def _one(self, segmenter: Segmenter) -> None:
        path = self.random.choice(self.scans)
        begun = time.monotonic()
        try:
            result = self._segmented(segmenter, path)
        except asyncio.CancelledError:
            _tell(event="cancelled", scan=path.name)
            return
        except Exception:
            _tell(event="lost", scan=path.name, reason=traceback.format_exc())
            return
        self.done += 1
        mask = np.asarray(result.mask.dataobj)
        right = mask.tobytes() == self.masks[path].tobytes() and mask.dtype == np.uint8
        report = result.report
        _tell(
            event="right" if right else "wrong",
            scan=path.name,
            seconds=round(time.monotonic() - begun, 2),
            retries=report.retries,
            shared_memory=report.shared_memory,
            **_taken(),
        )

    def _segmented(self, segmenter: Segmenter, path: Path) -> Any:
        if self.kind != "cancelling":
            return segmenter.segment(path)
        return asyncio.run(self._perhaps_cancelled(segmenter, path, self.random.random() < 1 / 3))

    async def _perhaps_cancelled(self, segmenter: Segmenter, path: Path, cancel: bool) -> Any:
        reached = threading.Event()
        work = asyncio.create_task(segmenter.asegment(path, lambda *_: reached.set()))
        if cancel:
            while not reached.is_set() and not work.done():
                await asyncio.sleep(0.002)
            work.cancel()
        return await work

    def _wait_for_the_end(self) -> None:
        sys.stdin.read()
        self.stopped.set()


def _tell(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


def _taken() -> dict[str, int]:
    """What this process holds now: bytes of memory and open files."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {"rss": pages * os.sysconf("SC_PAGE_SIZE"), "files": len(os.listdir("/proc/self/fd"))}


def _threads() -> list[str]:
    """The names of Python's threads beside the main one and the one that reads standard input."""
    return [
        thread.name for thread in threading.enumerate() if thread is not threading.main_thread() and not thread.daemon
    ]


if __name__ == "__main__":
    kind, seed, folder, clock, *urls = sys.argv[1:]
    move_clock_of_voxtile(Path(clock))
    Client(kind, int(seed), Path(folder), urls).run()
