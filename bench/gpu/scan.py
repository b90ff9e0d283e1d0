"""The stage of a whole scan: from memory to memory and from file to file, and MONAI's own way beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from . import phantom
from .agreement import agreement
from .networks import Subject, subject_of
from .settings import Known, Row, Settings, in_one_line
from .tiles import AOT, EAGER
from .timing import digits, event, forget_peak, peak, spread, synchronise
from .ways import Runner, Way, open_way

if TYPE_CHECKING:
    from voxtile.tiling.plan import TilePlan

OVERLAP = 0.25
SEED = 5
REPETITIONS = 5
DICE_LOSS = 0.005
"""By how much a label's Dice with the truth may be below that of fp32."""
BATCH = 8
"""Tiles in one call of the rows that no tile's row has chosen a batch for."""


@dataclass(frozen=True)
class Pass:
    """One scan's way through a network.

    Attributes:
        plan: where the tiles lie.
        run: the network.
        batch: tiles in one call; the last call is filled up, so that all have one shape.
        settings: of the run.
    """

    plan: TilePlan
    run: Runner
    batch: int
    settings: Settings

    def __call__(self, values: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Returns the labels [x, y, z], uint8, of a scan, int16, both in the host's memory; and the network's seconds.

        On a GPU the scan should be in pinned memory.
        """
        from voxtile.tiling.on_device import VolumePass

        device, clock = self.settings.device, Clock(self.settings.device)
        whole = VolumePass(self.plan, partial(clock.around, self._filled), self.batch, padding=0.0)
        scan = phantom.normalised(values.to(device, non_blocking=True))
        labels = whole.scores(scan[None]).argmax(0).to(torch.uint8)
        found = torch.empty(labels.shape, dtype=labels.dtype, pin_memory=device != "cpu").copy_(labels)
        return found, clock.seconds()

    def _filled(self, tiles: torch.Tensor) -> torch.Tensor:
        """Returns the scores of tiles [tile, 1, *roi]. The last call is filled up: a CUDA graph has one shape."""
        full = torch.cat([tiles, *[tiles[-1:]] * (self.batch - len(tiles))])
        return self.run(full)[: len(tiles)]


class Clock:
    """The seconds that calls take on a device, without waiting for each."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._events: list[tuple[Any, Any]] = []
        self._seconds = 0.0

    def around(self, run: Runner, tiles: torch.Tensor) -> torch.Tensor:
        """Returns what `run` makes of some tiles."""
        if self._device == "cpu":
            started = time.perf_counter()
            result = run(tiles)
            self._seconds += time.perf_counter() - started
            return result
        pair = event(), event()
        pair[0].record()
        result = run(tiles)
        pair[1].record()
        self._events.append(pair)
        return result

    def seconds(self) -> float:
        """Returns the sum so far; everything must have ended."""
        synchronise(self._device)
        return self._seconds + sum(float(begin.elapsed_time(end)) for begin, end in self._events) / 1e3


def measure(settings: Settings, known: Known, key: str, kinds: tuple[str, ...]) -> Iterator[Row]:
    """Yields the scan's rows: by the fastest way that was measured, against the mask of fp32.

    Args:
        settings: of the run.
        known: the rows of tiles, of which the fastest says the way and the batch.
        key: the network.
        kinds: who may make the kernels, see `Way.by`; "eager" has MONAI's own way beside it.
    """
    subject = subject_of(key, settings)
    way, batch = fastest(known, key, kinds) or unmeasured(kinds, settings)
    plan = plan_of(subject)
    about = {"network": key, "way": way.name, "batch": batch, "tiles": len(plan), "overlap": OVERLAP}
    values = scan_of(settings)
    with torch.no_grad():
        fp32 = Pass(plan, open_way(subject, Way(), batch), batch, settings)
        reference = fp32(values)[0]
        forget_peak(settings.device)
        through = Pass(plan, open_way(subject, way, batch), batch, settings)
        found, _ = through(values)
        told = agreement(reference, found, settings.scores)
        yield {"what": "memory to memory", **about, **told, **repeated(lambda: through(values)[1], settings)}
        for ending in (".nii", ".nii.gz"):
            yield {"what": f"file to file, {ending}", **about, **_files(through, values, ending, settings)}
    if "eager" in kinds:
        for other in (Way(), Way(dtype="fp16", autocast=True)):
            yield _monai(subject, other, values, settings.pick(4, 2))


def fastest(known: Known, key: str, kinds: tuple[str, ...]) -> tuple[Way, int] | None:
    """Returns the way with the fewest milliseconds a tile, and its batch; None without rows.

    A way that keeps Dice goes before all that do not.

    Args:
        known: the rows of tiles.
        key: the network.
        kinds: who may make the kernels, see `Way.by`.
    """
    ways = {one.name: one for way in (*EAGER, *AOT) if way.by in kinds for one in (way, replace(way, fused=False))}
    rows = [
        row for some in known.values() for row in some
        if row.get("network") == key and row.get("way") in ways and row.get("finite")
    ]  # fmt: skip
    if not rows:
        return None
    good = [row for row in rows if row["dice_loss"] <= DICE_LOSS]
    best = min(good or rows, key=lambda row: float(row["ms_per_roi"]))
    return ways[best["way"]], best["batch"]


def unmeasured(kinds: tuple[str, ...], settings: Settings) -> tuple[Way, int]:
    """Returns what a stage takes where no row of tiles says which way is the fastest.

    Raises:
        LookupError: nothing was measured that could be loaded.
    """
    if "eager" not in kinds:
        raise LookupError(f"expected tiles that were measured by {' or '.join(kinds)}, found none")
    return Way(dtype="bf16", last=True), settings.pick(BATCH, 2)


def plan_of(subject: Subject) -> TilePlan:
    """Returns Voxtile's tiles of the scan."""
    from voxtile.card import Tiling
    from voxtile.tiling.plan import plan_tiles

    return plan_tiles(subject.settings.scan_shape, subject.roi, Tiling(overlap=OVERLAP))


def scan_of(settings: Settings) -> torch.Tensor:
    """Returns the scan [x, y, z], int16, in the host's memory, pinned where there is a GPU."""
    labels = phantom.labels_of(settings.scan_shape, settings.scores, settings.device)
    values = phantom.values_of(labels, settings.scores, SEED).cpu()
    return values if settings.device == "cpu" else values.pin_memory()


def repeated(call: Callable[[], float], settings: Settings) -> Row:
    """Returns `seconds` with their spread, and `network_seconds`, of a call that returns the network's seconds."""
    forget_peak(settings.device)
    runs, network = [], []
    for _ in range(settings.pick(REPETITIONS, 1)):
        started = time.perf_counter()
        network.append(call())
        runs.append(1e3 * (time.perf_counter() - started))
    times = spread(runs)
    told = {f"seconds{end}": digits(times[f"ms{end}"] / 1e3) for end in ("", "_low", "_high")}
    network_ms = spread([1e3 * seconds for seconds in network])["ms"]
    return {**told, "runs": len(runs), "network_seconds": digits(network_ms / 1e3), **peak(settings.device)}


def _files(through: Pass, values: torch.Tensor, ending: str, settings: Settings) -> Row:
    """Measures from a scan's file to the mask's file, by nibabel."""
    try:
        import nibabel as nib
        import numpy as np

        scan, mask = settings.work / f"scan{ending}", settings.work / f"mask{ending}"
        nib.save(nib.Nifti1Image(values.numpy(), np.eye(4)), scan)

        def run() -> float:
            image = nib.load(scan)
            read = torch.from_numpy(np.asarray(image.dataobj))
            labels, seconds = through(read)
            nib.save(nib.Nifti1Image(labels.numpy(), image.affine), mask)
            return seconds

        return repeated(run, settings)
    except Exception as error:  # one ending that fails must not hide the other
        return {"error": in_one_line(error)}


def _monai(subject: Subject, way: Way, values: torch.Tensor, batch: int) -> Row:
    """Measures MONAI's `sliding_window_inference`, everything on the device, as a short script has it."""
    settings = subject.settings
    row: Row = {"what": "memory to memory", "network": subject.key, "way": f"MONAI, {way.name}", "batch": batch}
    try:
        from monai.inferers import sliding_window_inference

        run = open_way(subject, way, batch)

        def once() -> float:
            scan = phantom.normalised(values.to(settings.device))[None, None]
            scores = sliding_window_inference(scan, subject.roi, batch, run, overlap=OVERLAP, mode="gaussian")
            scores.argmax(1).to(torch.uint8).cpu()
            return 0.0

        with torch.no_grad():
            once()
            told = repeated(once, settings)
        del told["network_seconds"]
        return row | told
    except Exception as error:  # memory that is too small for it, or no MONAI
        return row | {"error": in_one_line(error)}
