"""How long a call takes, and the memory that it needs: by events on a GPU, by a clock on a CPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from .settings import Row, Settings

FEWEST, MOST, WARM_UPS = 3, 100, 3
"""Repetitions of a timing, and calls before it: the first ones choose kernels and take memory."""


def synchronise(device: str) -> None:
    """Waits for what a GPU still has to do."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def timed(call: Callable[[], object], settings: Settings) -> Row:
    """Returns `ms`, the median of a call's milliseconds, with `ms_low`, `ms_high` and the number of `runs`."""
    for _ in range(settings.pick(WARM_UPS, 1)):
        call()
    synchronise(settings.device)
    once = _by_clock if settings.device == "cpu" else _by_events
    runs: list[float] = []
    end = time.monotonic() + settings.seconds
    while len(runs) < settings.pick(FEWEST, 1) or (len(runs) < MOST and time.monotonic() < end):
        runs.append(once(call))
    return spread(runs)


def spread(runs: list[float]) -> Row:
    """Returns median, lowest and highest of some milliseconds, and how many there are."""
    return {
        "ms": digits(median(runs)), "ms_low": digits(min(runs)), "ms_high": digits(max(runs)), "runs": len(runs),
    }  # fmt: skip


def digits(value: float) -> float:
    """Returns a value with four significant digits."""
    return float(f"{value:.4g}")


def forget_peak(device: str) -> None:
    """Gives back what is free, and begins to watch the memory of a GPU anew."""
    if device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: str) -> Row:
    """Returns `peak_bytes`, the most memory of a GPU that PyTorch has held since `forget_peak`; nothing on a CPU."""
    return {} if device == "cpu" else {"peak_bytes": torch.cuda.max_memory_allocated(device)}


def event() -> Any:
    """Returns a mark in a GPU's work that knows its time."""
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _by_clock(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - started)


def _by_events(call: Callable[[], object]) -> float:
    begin, end = event(), event()
    begin.record()
    call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))
