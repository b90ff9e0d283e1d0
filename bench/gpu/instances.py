"""The stage of several copies of a network at work at the same time, on one GPU or on all."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch

from .networks import subject_of
from .scan import fastest, unmeasured
from .settings import Known, Row, Settings, in_one_line
from .timing import digits, synchronise
from .ways import Way, new_stream, open_way

COUNTS = (1, 2, 4)
"""Copies on one GPU."""


def on_one(settings: Settings, known: Known, key: str) -> Iterator[Row]:
    """Yields tiles a second of one copy and of several on one device, at a small batch and at the fastest."""
    way, best = fastest(known, key, ("eager",)) or unmeasured(("eager",), settings)
    for batch in sorted({1, best}):
        places = [[settings.device] * count for count in settings.pick(COUNTS, COUNTS[:2])]
        yield from _rows("copies on one GPU", settings, key, way, batch, places)


def on_all(settings: Settings, known: Known, key: str) -> Iterator[Row]:
    """Yields tiles a second of one GPU and of several, a copy on each.

    Raises:
        RuntimeError: there is one GPU only.
    """
    there = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if settings.device != "cpu" else ["cpu"] * 2
    if len(there) < 2:
        raise RuntimeError(f"expected several GPUs, found {len(there)}")
    way, batch = fastest(known, key, ("eager",)) or unmeasured(("eager",), settings)
    yield from _rows("GPUs", settings, key, way, batch, [there[:count] for count in range(1, len(there) + 1)])


def _rows(
    what: str, settings: Settings, key: str, way: Way, batch: int, places: Sequence[Sequence[str]]
) -> Iterator[Row]:
    one = None
    for devices in places:
        row: Row = {"what": what, "network": key, "way": way.name, "batch": batch, "count": len(devices)}
        try:
            rate = tiles_per_second(settings, key, way, batch, devices)
            one = one or rate
            yield row | {"tiles_per_second": digits(rate), "scaling": digits(rate / one)}
        except Exception as error:  # memory for so many copies may be missing
            yield row | {"error": in_one_line(error)}


def tiles_per_second(settings: Settings, key: str, way: Way, batch: int, devices: Sequence[str]) -> float:
    """Returns the tiles a second that copies of a network do together, one copy a thread, each on its device.

    On a GPU each copy is a CUDA graph on a stream of its own: PyTorch's own calls would wait for one another in Python.
    """
    begin = threading.Barrier(len(devices))
    opening = threading.Lock()

    def work(device: str) -> tuple[int, float, float]:
        with torch.no_grad(), _stream(device):
            with opening:  # a capture must not meet another's
                subject = subject_of(key, replace(settings, device=device))
                run = open_way(subject, replace(way, graph=device != "cpu"), batch)
                tiles = subject.tiles(batch)
                run(tiles)
                synchronise(device)
            begin.wait()
            started, calls = time.perf_counter(), 0
            while calls < 2 or time.perf_counter() - started < settings.seconds:
                run(tiles)
                torch.cuda.current_stream().synchronize() if device != "cpu" else None
                calls += 1
            return calls, started, time.perf_counter()

    with ThreadPoolExecutor(len(devices)) as pool:
        done = list(pool.map(work, devices))
    seconds = max(end for _, _, end in done) - min(start for _, start, _ in done)
    return batch * sum(calls for calls, _, _ in done) / seconds


def _stream(device: str) -> Any:
    """A stream of its own, on a GPU, made current for this thread."""
    return nullcontext() if device == "cpu" else torch.cuda.stream(new_stream(device))
