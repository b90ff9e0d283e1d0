"""What a segmentation did, in numbers: the object that `voxtile segment --json` writes. Knows nothing of servers."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from voxtile.card import Card
from voxtile.io.atomic import atomic_file
from voxtile.io.intensities import InputStatistics
from voxtile.io.scaling import chunks


class Seconds(BaseModel):
    """Wall-clock seconds of each step. They add up to `total`, although steps overlap the server's work.

    Attributes:
        read: reading the files.
        prepare: bringing the scan to the model's grid.
        infer: waiting for scores.
        stitch: adding up scores.
        restore: bringing scores back to the scan's grid and deciding on labels.
        write: writing the mask and what comes beside it.
        total: from the first step to the last.
    """

    read: float = 0.0
    prepare: float = 0.0
    infer: float = 0.0
    stitch: float = 0.0
    restore: float = 0.0
    write: float = 0.0
    total: float = 0.0


class LabelVolume(BaseModel):
    """The size of one label in the mask.

    Attributes:
        voxels: the number of voxels.
        ml: the volume in millilitres, by the scan's own voxel size.
    """

    voxels: int
    ml: float


class PartReport(BaseModel):
    """What one model of a set did.

    Attributes:
        model: the model's public name.
        version: the version of the entry that answered.
        engine: the engine behind the public name.
        certificate: A summary of the engine's certificate.
        tiles: the number of tiles that were sent.
        grid: the voxels along each axis of the model's own grid.
        seconds: the time of each step.
        predicted_peak_bytes: the memory that was predicted before the first tile.
    """

    model: str
    version: str
    engine: str
    certificate: dict[str, Any]
    tiles: int
    grid: tuple[int, int, int]
    seconds: Seconds
    predicted_peak_bytes: int


class Report(BaseModel):
    """Everything about one segmentation, and nothing about the patient: no file names, no header fields.

    Attributes:
        model: the model's public name.
        version: the version of the entry that answered.
        shape: the scan's voxels along each axis.
        tiles: the number of tiles that were sent.
        seconds: the time of each step.
        bytes_sent: the size of all tensors that were sent.
        bytes_received: the size of all tensors that were received.
        peak_rss_bytes: the largest resident memory of the process.
        retries: the number of requests that were sent again.
        labels: the size of each label, by its name.
        certificate: A summary of the engine's certificate: `accepted`, `precision`, `dice_min`, `changed_fraction`,
            `max_abs_error`, `sha256`, the devices that it was measured on and runs on, and labels that it has not seen.
        engine: the engine behind the public name.
        servers: the addresses of the servers.
        grid: the voxels along each axis after orientation and spacing.
        tiling: how the scan was cut.
        changes: what was asked for that may change the result, in words; empty for the model's own semantics.
        warnings: what the scan's header contradicts itself in, and what counted, in words.
        input_rounding: the largest difference between a voxel and what was sent, in the scan's units.
        skipped_tiles: the number of tiles that `--skip-empty` left out.
        spot_checked_tiles: how many of them `--spot-check` sent all the same.
        spot_check_changed_tiles: in how many of these a label would have appeared.
        predicted_peak_bytes: the memory that was predicted before the first tile.
        shared_memory: whether tensors went through shared memory.
        in_flight: the largest number of requests in flight to one server, within the memory allowed.
        batch: the number of tiles in a request, within the memory allowed.
        strips: the number of strips that the scan was worked through in; 1 for whole planes.
        tiles_sent_again: the number of tiles that were sent for more than one strip.
        parts: of a set of models, what each of them did, in order.
        inputs: what the scan's body looks like to the network, by channel; not of a set of models.
        passport: what made the mask, as the mask itself says it; `voxtile why` reads it.
    """

    model: str
    version: str
    shape: tuple[int, int, int]
    tiles: int
    seconds: Seconds
    bytes_sent: int
    bytes_received: int
    peak_rss_bytes: int
    retries: int
    labels: dict[str, LabelVolume]
    certificate: dict[str, Any]
    engine: str
    servers: list[str]
    grid: tuple[int, int, int]
    tiling: dict[str, Any]
    changes: list[str]
    warnings: list[str] = []
    input_rounding: float = 0.0
    skipped_tiles: int = 0
    spot_checked_tiles: int = 0
    spot_check_changed_tiles: int = 0
    predicted_peak_bytes: int = 0
    shared_memory: bool = False
    in_flight: int = 0
    batch: int = 0
    strips: int = 1
    tiles_sent_again: int = 0
    parts: list[PartReport] = []
    inputs: dict[str, InputStatistics] = {}
    passport: dict[str, Any] = {}


class Stopwatch:
    """Adds up seconds by step; while a step runs inside another one, only the inner one's clock runs.

    Args:
        before: seconds of earlier work on the same scan, to begin with.
    """

    def __init__(self, before: Seconds | None = None) -> None:
        self.seconds = Seconds() if before is None else before.model_copy()
        self._before = self.seconds.total
        self._begin = self._mark = time.perf_counter()
        self._running: list[str] = []

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Adds the seconds of this block to the step `name`, a field of `Seconds`."""
        self._lap()
        self._running.append(name)
        try:
            yield
        finally:
            self._lap()
            self._running.pop()

    def add(self, seconds: Seconds) -> None:
        """Adds the steps of work that another watch has measured meanwhile; the total counts them already."""
        for name, value in seconds.model_dump(exclude={"total"}).items():
            setattr(self.seconds, name, getattr(self.seconds, name) + value)

    def _lap(self) -> None:
        """Gives the time since the last mark to the innermost step."""
        now = time.perf_counter()
        if self._running:
            name = self._running[-1]
            setattr(self.seconds, name, getattr(self.seconds, name) + now - self._mark)
        self._mark = now

    def stop(self) -> Seconds:
        """Returns the seconds so far; `total` also counts the time between the steps."""
        self.seconds.total = self._before + time.perf_counter() - self._begin
        return Seconds(**{name: round(value, 6) for name, value in self.seconds.model_dump().items()})


def peak_rss_bytes() -> int:
    """Returns the largest resident memory that this process has had.

    From VmHWM where there is one: the peak that getrusage gives starts, after a fork, at the parent's.
    """
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def label_volumes(labels: NDArray[Any], voxel_ml: float, card: Card) -> dict[str, LabelVolume]:
    """Returns voxels and millilitres of every label of the card, of `labels` [i, j, k] with voxels of `voxel_ml`."""
    values = 1 + max(label.value for label in card.labels)
    # In pieces, because bincount makes int64 of what it is given.
    counts = np.sum([np.bincount(part, minlength=values) for part in chunks(labels)], axis=0)
    return {
        " + ".join(names): LabelVolume(voxels=int(counts[value]), ml=round(int(counts[value]) * voxel_ml, 4))
        for value, names in names_by_value(card).items()
    }


def names_by_value(card: Card) -> dict[int, list[str]]:
    """Names of labels by their value in the mask; regions of one value are one label there."""
    names: dict[int, list[str]] = {}
    for label in card.labels:
        names.setdefault(label.value, []).append(label.name)
    return names


def certificate_summary(card: Card) -> dict[str, Any]:
    """Returns the certificate of the engine behind the public name, as the card states it."""
    certificate = card.certificates.get(card.engine)
    return {"engine": card.engine, **(certificate.model_dump() if certificate else {"accepted": False})}


def write_text(text: str, path: Path) -> None:
    """Writes `text` atomically.

    Raises:
        OutputError: the file cannot be written.
    """
    with atomic_file(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))  # names that are no UTF-8
