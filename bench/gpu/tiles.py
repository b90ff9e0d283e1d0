"""The stage of a network's tiles: milliseconds a tile, share of the peak, memory and agreement, way by way."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from .agreement import agreement, dice_loss
from .networks import ATTENTIVE, Subject, subject_of
from .rates import peak_rate
from .settings import Known, Row, Settings, in_one_line
from .timing import digits, forget_peak, peak, synchronise, timed
from .ways import Way, open_way

INDEX_LIMIT = 2**31
"""Elements of a tensor from which PyTorch's and cuDNN's kernels may count wrong or end the process."""

EAGER = (
    Way(),
    Way(dtype="bf16", last=True),
    Way(dtype="bf16", last=True, fused=True),
    Way(dtype="fp16", last=True, fused=True),
    Way(dtype="bf16"),
    Way(dtype="fp16"),
    Way(dtype="tf32"),
    Way(dtype="fp16", autocast=True),
    Way(dtype="bf16", last=True, autocast=True),
)
"""fp32 comes first: the others are compared with it."""
AOT = (Way("aot", "fp16", fused=True), Way("aot", "bf16", last=True, fused=True))
"""The layout that the build compiles, and the other one, of which a package on a CPU may give wrong scores."""
COMPILED = (Way("compile", "bf16", last=True, fused=True),)
AUTOTUNED = (Way("autotuned", "bf16", last=True, fused=True),)
TENSORRT = (Way("tensorrt", "fp16"),)


@dataclass(frozen=True)
class Reference:
    """What fp32 says of one tile.

    Attributes:
        tile: [1, 1, *roi] fp32.
        scores: [1, score, *roi] fp32, on the CPU.
        labels: [*roi] uint8.
    """

    tile: torch.Tensor
    scores: torch.Tensor
    labels: torch.Tensor


def measure(settings: Settings, known: Known, key: str, ways: Sequence[Way], each_batch: bool = True) -> Iterator[Row]:
    """Yields a row for each way and batch; one that fails says why.

    Args:
        settings: of the run.
        known: the rates of the machine among them, for shares of its peak.
        key: the network.
        ways: in their order.
        each_batch: whether a way is opened anew for each batch, or for the smallest and the middle one alone, where
            that takes long.
    """
    subject = subject_of(key, settings)
    operations, elements = subject.work
    yield {"network": key, "title": subject.title, "roi": list(subject.roi), "gflop": digits(operations / 1e9)}
    reference, rate = reference_of(subject), peak_rate(known)
    batches = settings.batches if each_batch else settings.batches[::2][:2]
    for way in dict.fromkeys(ways if key in ATTENTIVE else [replace(way, fused=False) for way in ways]):
        for one, batch in _rounds(way, batches, settings.device):
            row: Row = {"network": key, "way": one.name, "batch": batch}
            try:
                row |= _row(subject, one, batch, reference, elements)
                row |= {} if rate is None else {"share": digits(operations / (row["ms_per_roi"] / 1e3) / rate)}
            except Exception as error:  # a batch or a way that fails must not hide the others
                row |= {"error": in_one_line(error)}
            yield row


def reference_of(subject: Subject) -> Reference:
    """Returns what the network says in fp32, TF32 off."""
    tile = subject.tiles(1)
    with torch.no_grad():
        scores = open_way(subject, Way(), 1)(tile).float()
    return Reference(tile, scores.cpu(), scores.argmax(1)[0].to(torch.uint8))


def compared(reference: Reference, scores: torch.Tensor, truth: torch.Tensor) -> Row:
    """Returns how far scores [1, score, *roi] of any type agree with the reference, and with the true labels."""
    values = scores[:1].float()
    found, count = values.argmax(1)[0].to(torch.uint8), values.shape[1]
    values = values.cpu()
    error = (values - reference.scores).norm() / reference.scores.norm()
    return {
        **agreement(reference.labels, found, count),
        "dice_loss": dice_loss(truth, reference.labels, found, count),
        "relative_error": digits(float(error)) if error.isfinite() else None,
        "finite": bool(values.isfinite().all()),
    }


def _rounds(way: Way, batches: Sequence[int], device: str) -> Iterator[tuple[Way, int]]:
    """Yields a way at each batch, and on a GPU the smallest batch as a CUDA graph too."""
    for batch in batches:
        yield way, batch
        if batch == batches[0] and device != "cpu" and way.by in ("eager", "aot"):
            yield replace(way, graph=True), batch


def _row(subject: Subject, way: Way, batch: int, reference: Reference, elements: int) -> Row:
    if batch * elements >= INDEX_LIMIT:
        raise ValueError(f"expected tensors of fewer than 2^31 elements, found {batch * elements:,}: not tried")
    settings = subject.settings
    tiles = subject.tiles(batch)
    tiles[0] = reference.tile[0]
    forget_peak(settings.device)
    started = time.perf_counter()
    with torch.no_grad():
        run = open_way(subject, way, batch)
        told: Row = compared(reference, run(tiles), subject.labels)
        synchronise(settings.device)
        told |= {"ready_seconds": digits(time.perf_counter() - started)}
        forget_peak(settings.device)
        times = timed(lambda: run(tiles), settings)
    return {**told, "ms_per_roi": digits(times["ms"] / batch), **times, **peak(settings.device)}
