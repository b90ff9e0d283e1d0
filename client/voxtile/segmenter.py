"""A scan in, its mask out: read, prepare, cut, infer, stitch, restore."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.budget import MemoryEstimate, fitting_schedule, left_for_preparing, predicted_bytes
from voxtile.card import Card, Tiling
from voxtile.chains.base import PlaneSink, PreparedScan
from voxtile.chains.prepare import prepare_scan
from voxtile.errors import InputError, ModelError, VoxtileError
from voxtile.io.images import mask_image, read_scan, volume_from_image
from voxtile.io.volume import Volume
from voxtile.outputs.report import Report, Stopwatch, certificate_summary, label_volumes, peak_rss_bytes
from voxtile.tiling.extract import Cutter, tile_batches, tile_scores, tta_flips
from voxtile.tiling.plan import Tile, plan_tiles, tile_shape
from voxtile.tiling.schedule import Schedule, at_once, schedules
from voxtile.tiling.skip import empty_tiles
from voxtile.tiling.stitch import Stitcher
from voxtile.tiling.stitch_fp16 import Fp16Stitcher
from voxtile.tiling.strips import Strip, sent_again, tiles_of
from voxtile.triton.endpoint import ConnectionConfig, Request
from voxtile.triton.transport import RetryPolicy, Transport

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with tiles done and tiles in all."""


@dataclass(frozen=True)
class Options:
    """How to segment; the defaults are the model's own semantics, exactly.

    overlap, mode, mirror: change the result, and are named in the report. batch: tiles a request at most (the
    server's most by default). in_flight: requests on their way to one server at most. Large tiles are fewer of both.
    skip_empty: leave out tiles outside the body by the card's rule; audit: how many of those to send all the same.
    max_ram: bytes, to be kept to with fewer tiles at once and with strips, which change nothing; half_scores: and,
    where that is not enough, by summing scores in half precision, which does. keep_scores: also give the scores on
    the scan's own grid (as large as they are). postprocessing: whether to do what an nnU-Net model learned to do with
    finished labels.
    """

    overlap: float | None = None
    mode: str | None = None
    mirror: bool = True
    batch: int | None = None
    in_flight: int = 8
    skip_empty: bool = False
    spot_check: int = 0
    max_ram: int | None = None
    half_scores: bool = False
    keep_scores: bool = False
    postprocessing: bool = True
    connection: ConnectionConfig = field(default_factory=ConnectionConfig)
    retry_policy: RetryPolicy = field(default_factory=RetryPolicy)


@dataclass(frozen=True)
class Segmentation:
    """mask: nibabel image on the scan's own grid; labels: its values [i, j, k]; report: what was done.

    scores: [score, i, j, k] float32 on the scan's own grid, where they were to be kept; of an nnU-Net model they are
    probabilities, as nnU-Net exports them.
    """

    mask: Any
    labels: NDArray[Any]
    report: Report
    scores: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Loaded:
    """A scan that has been read and prepared."""

    volume: Volume
    prepared: PreparedScan
    watch: Stopwatch


class Segmenter:
    """Segments scans with `model` on the Triton server (or servers) at `url`, given as host:port of its gRPC service.

    Raises ServerUnavailable and ModelError at once where the model cannot be had. Usable as a context manager;
    one Segmenter serves any number of scans, one after the other.
    """

    def __init__(self, url: str | Sequence[str], model: str, options: Options | None = None, **changes: Any) -> None:
        urls = [url] if isinstance(url, str) else list(url)
        self.options = replace(options or Options(), **changes)
        self.transport = Transport(
            urls, model, self.options.connection, self.options.retry_policy, self.options.in_flight
        )
        self.card = self.transport.model.card
        self.previous: Segmenter | None = None
        try:
            self.tiling, self.changes = chosen_tiling(self.card, self.options)
            if self.card.previous_stage:
                first = replace(self.options, keep_scores=False, postprocessing=False)
                self.previous = Segmenter(urls, self.card.previous_stage, first)
        except VoxtileError:
            self.close()
            raise

    def __call__(self, image: Any, progress: Progress | None = None) -> Any:
        """The mask (nibabel image) of `image`: a nibabel image, a path, or one of either for each channel."""
        return self.segment(image, progress).mask

    def segment(self, image: Any, progress: Progress | None = None) -> Segmentation:
        """The mask and the report. Raises InputError for a scan that cannot be used, TileError when servers fail."""
        return self.run(self.load(image), progress)

    async def asegment(self, image: Any, progress: Progress | None = None) -> Segmentation:
        """`segment` for an event loop, which goes on meanwhile; one scan at a time for each Segmenter."""
        return await asyncio.to_thread(self.segment, image, progress)

    def load(self, image: Any) -> Loaded:
        """Reads and prepares a scan; may run on another thread while `run` works on the one before."""
        watch = Stopwatch()
        with watch.step("read"):
            volume = open_volume(image, self.card)
        labels = self._first_stage(volume, watch)
        with watch.step("prepare"):
            left = left_for_preparing(volume, self.options.max_ram)
            prepared = prepare_scan(volume, self.card, labels, self.options.postprocessing, left)
        return Loaded(volume, prepared, watch)

    def _first_stage(self, volume: Volume, watch: Stopwatch) -> NDArray[Any] | None:
        """The labels [i, j, k] of a cascade's first stage; None where the model is not the second."""
        if self.previous is None:
            return None
        with watch.step("infer"):
            left = left_for_preparing(volume, self.options.max_ram)
            prepared = prepare_scan(volume, self.previous.card, postprocessing=False, max_bytes=left)
            return self.previous.run(Loaded(volume, prepared, Stopwatch())).labels

    def run(self, loaded: Loaded, progress: Progress | None = None) -> Segmentation:
        """Segments a scan that has been loaded."""
        job = _Job(self, loaded.prepared, loaded.volume)
        loaded.watch.resume()
        labels = job.run(loaded.watch, progress)
        report = job.report(labels, loaded.watch)
        return Segmentation(mask_image(labels, loaded.volume), labels, report, job.scores)

    def close(self) -> None:
        self.transport.close()
        if self.previous:
            self.previous.close()

    def __enter__(self) -> Segmenter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_volume(image: Any, card: Card) -> Volume:
    """The scan behind `image`: a path, a nibabel image, or a sequence of either with one for each channel."""
    items = list(image) if isinstance(image, (list, tuple)) else [image]
    if all(isinstance(item, (str, Path)) for item in items):
        return read_scan(items, card.input_channels)
    return volume_from_image(items, card.input_channels)


class _Job:
    """One scan on its way through one model."""

    def __init__(self, segmenter: Segmenter, prepared: PreparedScan, volume: Volume) -> None:
        self.transport = segmenter.transport
        self.options = segmenter.options
        self.card = segmenter.card
        self.prepared = prepared
        self.volume = volume
        self.tiling = segmenter.tiling
        self.flips = tta_flips(self.card.mirror_axes if self.options.mirror else ())
        self.plan = plan_tiles(prepared.data.shape[1:], tile_shape(self.card, prepared.data.shape[1:]), self.tiling)
        self.memory = self._memory()
        self.schedule = self._schedule()
        self.changes = segmenter.changes + (["scores summed in half precision"] if self.schedule.half else [])
        self.skipped = self._skippable()
        self.parts = [tiles_of(self.plan, strip) for strip in self.schedule.strips]
        self.spot_checked = self.spot_check_changed = 0
        self.scores: NDArray[np.float32] | None = None
        self.before = replace(self.transport.traffic)

    @property
    def cutter(self) -> Cutter:
        return Cutter(
            self.prepared.data, self.plan, self.prepared.encode, self.card.input.padding, self.card.slice_axis
        )

    def run(self, watch: Stopwatch, progress: Progress | None) -> NDArray[Any]:
        """The labels on the scan's own grid."""
        restorer = self.prepared.restorer(self.options.keep_scores)
        scores = self._scores([tile for part in self.parts for tile in self._sent(part)])
        told = _counted(progress, sum(map(len, self.parts)))
        try:
            for strip, tiles in zip(self.schedule.strips, self.parts, strict=True):
                restorer.start_strip(strip)
                self._run_strip(strip, tiles, scores, restorer, watch, told)
        finally:
            scores.close()
        with watch.step("restore"):
            labels = restorer.finish()
        if self.options.keep_scores:
            self.scores = restorer.scores
        self._spot_check()
        return labels

    def _run_strip(
        self,
        strip: Strip,
        tiles: Sequence[Tile],
        scores: Iterator[NDArray[np.generic]],
        restorer: PlaneSink,
        watch: Stopwatch,
        told: Callable[[], None],
    ) -> None:
        """Stitches the `tiles` that touch `strip`, and hands its planes to `restorer`."""
        background = self._background() if self.skipped else None
        kind = Fp16Stitcher if self.schedule.half else Stitcher
        stitcher = kind(self.plan, self.card.output.scores, background, strip)
        for tile in tiles:
            with watch.step("infer"):
                answer = None if tile.index in self.skipped else next(scores)
            with watch.step("stitch"):
                finished = stitcher.skip(tile) if answer is None else stitcher.add(tile, answer)
                for planes in finished:
                    _feed(restorer, planes, watch)
            told()
        with watch.step("stitch"):
            for planes in stitcher.finish():
                _feed(restorer, planes, watch)

    def _sent(self, tiles: Sequence[Tile]) -> list[Tile]:
        return [tile for tile in tiles if tile.index not in self.skipped]

    def _scores(self, tiles: Sequence[Tile]) -> Any:
        batches = tile_batches(iter(tiles), self.cutter, self.flips, self.schedule.batch)
        requests = (Request(batch.index, batch.values, self.prepared.statistics) for batch in batches)
        answers = self.transport.infer(requests, self.schedule.in_flight)
        return tile_scores(answers, self.flips, self.card.slice_axis)

    def _memory(self) -> MemoryEstimate:
        return MemoryEstimate(
            volume=self.volume,
            prepared=self.prepared,
            card=self.card,
            plan=self.plan,
            servers=len(self.transport.endpoints),
            keep_scores=self.options.keep_scores,
            searched=self.options.skip_empty,
        )

    def _schedule(self) -> Schedule:
        """How the scan is worked through within the memory allowed. Raises MemoryLimitError."""
        options, most = self.options, self.transport.model.max_batch_size
        wanted = min(options.batch or most, most)
        in_flight, batch = at_once(options.in_flight, wanted, self.memory.tile_bytes)
        possible = schedules(in_flight, batch, self.plan, self.prepared.strips)
        return fitting_schedule(self.memory, possible, options.max_ram, half_allowed=options.half_scores)

    def report(self, labels: NDArray[Any], watch: Stopwatch) -> Report:
        traffic, before = self.transport.traffic, self.before
        shape = self.volume.data.shape[1:]
        return Report(
            model=self.card.name,
            version=self.transport.model.version,
            shape=(shape[0], shape[1], shape[2]),
            tiles=len(self.plan) - len(self.skipped),
            seconds=watch.stop(),
            bytes_sent=traffic.bytes_sent - before.bytes_sent,
            bytes_received=traffic.bytes_received - before.bytes_received,
            peak_rss_bytes=peak_rss_bytes(),
            retries=traffic.retries - before.retries,
            labels=label_volumes(labels, self.volume.voxel_ml, self.card),
            certificate=certificate_summary(self.card),
            engine=self.card.engine,
            servers=[endpoint.url for endpoint in self.transport.endpoints],
            grid=tuple(self.prepared.data.shape[1:]),
            tiling=self.tiling.model_dump(),
            changes=self.changes,
            input_rounding=self.prepared.input_rounding,
            skipped_tiles=len(self.skipped),
            spot_checked_tiles=self.spot_checked,
            spot_check_changed_tiles=self.spot_check_changed,
            predicted_peak_bytes=predicted_bytes(self.memory.components(self.schedule)),
            shared_memory=any(endpoint.shares_memory for endpoint in self.transport.endpoints),
            in_flight=self.schedule.in_flight,
            batch=self.schedule.batch,
            strips=len(self.schedule.strips),
            tiles_sent_again=sent_again(map(self._sent, self.parts)),
        )

    # Leaving out what is empty -------------------------------------------------------------------------------

    def _skippable(self) -> frozenset[int]:
        if not self.options.skip_empty:
            return frozenset()
        if self.card.background is None:
            raise ModelError(
                f"model {self.card.name!r} has no rule for what is empty (`[input] empty` in its spec), "
                "so --skip-empty cannot be used with it"
            )
        return empty_tiles(
            self.prepared.data, self.plan, self.prepared.background_at_most(self.card.background.at_most)
        )

    def _background(self) -> NDArray[np.float32]:
        """What scores as background: the first score wins, or nothing is over its threshold."""
        background = np.zeros(self.card.output.scores, np.float32)
        if self.card.regions or self.card.output.kind == "foreground":
            background[:] = -1.0
        elif self.card.output.kind != "labels":
            background[0] = 1.0
        return background

    def _spot_check(self) -> None:
        """Sends some of the skipped tiles all the same and counts those that hold a label."""
        chosen = sorted(self.skipped)[:: max(len(self.skipped) // max(self.options.spot_check, 1), 1)][
            : self.options.spot_check
        ]
        tiles = [tile for tile in self.plan if tile.index in set(chosen)]
        if not tiles:
            return
        for scores in self._scores(tiles):
            self.spot_checked += 1
            self.spot_check_changed += bool(self.prepared.holds_label(np.asarray(scores, np.float32)))


def _counted(progress: Progress | None, total: int) -> Callable[[], None]:
    """What is called after each of `total` tiles, a tile that is sent again included."""
    done = itertools.count(1)
    return lambda: progress(next(done), total) if progress else None


def _feed(restorer: PlaneSink, planes: NDArray[np.float32], watch: Stopwatch) -> None:
    with watch.step("restore"):
        restorer.add_planes(planes)


def chosen_tiling(card: Card, options: Options) -> tuple[Tiling, list[str]]:
    """The card's tiling with what the options change, and those changes in words. Raises InputError."""
    wanted: Mapping[str, Any] = {
        key: value
        for key, value in (("overlap", options.overlap), ("mode", options.mode))
        if value is not None and value != getattr(card.tiling, key)
    }
    if wanted and card.multiple is not None:
        raise InputError(f"model {card.name!r} takes whole slices, which do not overlap; leave out {', '.join(wanted)}")
    try:
        tiling = Tiling.model_validate({**card.tiling.model_dump(), **wanted})
    except ValueError as error:
        raise InputError(f"overlap lies in [0, 1) and mode is constant or gaussian; found {dict(wanted)}") from error
    changes = [f"{key} {getattr(card.tiling, key)} -> {value}" for key, value in wanted.items()]
    if card.mirror_axes and not options.mirror:
        changes.append("mirroring off")
    if options.skip_empty:
        changes.append("empty tiles skipped")
    if card.nnunet and card.nnunet.get("postprocessing") and not options.postprocessing:
        changes.append("learned post-processing off")
    return tiling, changes
