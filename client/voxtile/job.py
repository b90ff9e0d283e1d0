"""Takes one prepared scan through one model: plan, cut, infer, stitch, restore, and the report of it.

Knows nothing of files, of how a scan is prepared, or of gRPC.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from voxtile.budget import MemoryEstimate, fitting_schedule, predicted_bytes
from voxtile.card import Card, Tiling
from voxtile.chains.base import PlaneSink, PreparedScan
from voxtile.io.intensities import InputStatistics, input_statistics, thinned
from voxtile.io.volume import Volume
from voxtile.options import Options
from voxtile.outputs.report import Report, Seconds, Stopwatch, certificate_summary, label_volumes, peak_rss_bytes
from voxtile.skipping import background_scores, skippable_tiles, spot_check_tiles
from voxtile.tiling.extract import Cutter, tile_batches, tile_scores, tta_flips
from voxtile.tiling.plan import Tile, plan_tiles, tile_shape
from voxtile.tiling.schedule import Schedule, at_once, schedules
from voxtile.tiling.stitch import Stitcher
from voxtile.tiling.stitch_fp16 import Fp16Stitcher
from voxtile.tiling.strips import Strip, sent_again, tiles_of
from voxtile.triton.transport import Answers, Transport
from voxtile.triton.types import Request, Traffic

Result = TypeVar("Result")

Progress = Callable[[int, int], None]
"""Called as progress(done, total) after each tile; both count tiles."""


class Cancelled(Exception):
    """The work was cancelled, by a `Cancellation` that the caller of `Segmenter.segment` gave."""


class Cancellation:
    """Lets one thread stop the work of another."""

    def __init__(self) -> None:
        self._cancelled = threading.Event()
        self._answers: Answers | None = None

    def cancel(self) -> None:
        """Stops the work at its next step, and cancels the requests in flight; returns without waiting."""
        self._cancelled.set()
        if self._answers is not None:
            threading.Thread(target=self._close, args=(self._answers,), name="voxtile-cancel", daemon=True).start()

    def check(self) -> None:
        """Raises Cancelled once `cancel` was called."""
        if self._cancelled.is_set():
            raise Cancelled

    def watch(self, answers: Answers) -> None:
        """Closes `answers` when the work is cancelled."""
        self._answers = answers
        self.check()

    @staticmethod
    def _close(answers: Answers) -> None:
        with contextlib.suppress(ValueError):  # a running generator; the work stops after its next answer
            answers.close()


async def cancellable(work: Callable[[Cancellation], Result]) -> Result:
    """Does work on another thread, while the event loop goes on, and returns what it gives.

    Cancelling this cancels the requests in flight and stops the work; it ends when the work has ended.
    """
    cancellation = Cancellation()
    ongoing = asyncio.ensure_future(asyncio.to_thread(work, cancellation))
    try:
        return await asyncio.shield(ongoing)
    except asyncio.CancelledError:
        cancellation.cancel()
        await asyncio.wait([ongoing])
        ongoing.exception()  # marks it as seen
        raise


class Job:
    """One scan on its way through one model.

    Args:
        transport: where tiles become scores.
        options: how to segment.
        tiling: the tiling that the options give for the model.
        changes: what the options change, in words.
        volume: the scan.
        prepared: the scan on the model's grid.
        loading: the seconds that reading and preparing took.
        cancellation: stops the work.
        held_bytes: what is held beside the scan meanwhile, for the limit of memory.

    Raises:
        MemoryLimitError: the scan cannot be segmented within the memory allowed.
        ModelError: empty tiles are to be skipped, and the card has no rule for them.
    """

    def __init__(
        self,
        transport: Transport,
        options: Options,
        tiling: Tiling,
        changes: Sequence[str],
        volume: Volume,
        prepared: PreparedScan,
        loading: Seconds,
        cancellation: Cancellation,
        held_bytes: int = 0,
    ) -> None:
        self._transport = transport
        self._card: Card = transport.model.card
        self._options = options
        self._tiling = tiling
        self._volume = volume
        self._prepared = prepared
        self._cancellation = cancellation
        self._held_bytes = held_bytes
        self._watch = Stopwatch(loading)
        self._traffic = Traffic()
        grid = prepared.data.shape[1:]
        self._flips = tta_flips(self._card.mirror_axes if options.mirror else ())
        self._plan = plan_tiles(grid, tile_shape(self._card, grid), tiling)
        self._memory = self._memory_estimate()
        self._schedule = self._fitting_schedule()
        self._changes = [*changes, *(["scores summed in half precision"] if self._schedule.half else [])]
        self._skipped = skippable_tiles(self._card, prepared, self._plan) if options.skip_empty else frozenset()
        self._parts = [tiles_of(self._plan, strip) for strip in self._schedule.strips]
        self._spot_checked = self._spot_check_changed = 0
        self.scores: NDArray[np.float32] | None = None

    def run(self, progress: Progress | None = None) -> NDArray[Any]:
        """Segments the scan; `scores` then holds the scores on the scan's own grid, where they are to be kept.

        Returns:
            Labels [i, j, k] on the scan's own grid.

        Raises:
            TileError: a request was refused too often.
            NoResponseError: no server has answered for too long.
        """
        restorer = self._prepared.restorer(self._options.keep_scores)
        stitched = _counter(progress, sum(map(len, self._parts)))
        with self._scores([tile for part in self._parts for tile in self._sent(part)]) as scores:
            for strip, tiles in zip(self._schedule.strips, self._parts, strict=True):
                restorer.start_strip(strip)
                self._run_strip(strip, tiles, scores, restorer, stitched)
        with self._watch.step("restore"):
            labels = restorer.finish()
        if self._options.keep_scores:
            self.scores = restorer.scores
        self._spot_check()
        return labels

    def _run_strip(
        self,
        strip: Strip,
        tiles: Sequence[Tile],
        scores: Iterator[NDArray[np.generic]],
        restorer: PlaneSink,
        stitched: Callable[[], None],
    ) -> None:
        """Stitches the `tiles` that touch `strip`, and hands its finished planes to `restorer`."""
        background = background_scores(self._card) if self._skipped else None
        kind = Fp16Stitcher if self._schedule.half else Stitcher
        stitcher = kind(self._plan, self._card.output.scores, background, strip)
        for tile in tiles:
            self._cancellation.check()
            with self._watch.step("infer"):
                answer = None if tile.index in self._skipped else self._next(scores)
            with self._watch.step("stitch"):
                finished = stitcher.skip(tile) if answer is None else stitcher.add(tile, answer)
                self._restore(finished, restorer)
            stitched()
        with self._watch.step("stitch"):
            self._restore(stitcher.finish(), restorer)

    def _next(self, scores: Iterator[NDArray[np.generic]]) -> NDArray[np.generic]:
        """The scores of the next tile; a transport that was cancelled has none."""
        answer = next(scores, None)
        self._cancellation.check()
        assert answer is not None, "a transport gives scores for every request, or raises"
        return answer

    def _restore(self, finished: Iterator[NDArray[np.float32]], restorer: PlaneSink) -> None:
        for planes in finished:
            with self._watch.step("restore"):
                restorer.add_planes(planes)

    def _sent(self, tiles: Sequence[Tile]) -> list[Tile]:
        return [tile for tile in tiles if tile.index not in self._skipped]

    @contextlib.contextmanager
    def _scores(self, tiles: Sequence[Tile]) -> Iterator[Iterator[NDArray[np.generic]]]:
        """The scores [score, *tile] of `tiles`, in their order; at the end of the block no request is in flight."""
        card = self._card
        cutter = Cutter(self._prepared.data, self._plan, self._prepared.encode, card.input.padding, card.slice_axis)
        batches = tile_batches(iter(tiles), cutter, self._flips, self._schedule.batch)
        requests = (Request(batch.index, batch.values, self._prepared.statistics) for batch in batches)
        answers = self._transport.infer(requests, self._schedule.in_flight, self._traffic)
        try:
            self._cancellation.watch(answers)
            yield tile_scores(answers, self._flips, card.slice_axis)
            for _ in answers:  # none is left; a transport says at its end whether one model gave them all
                raise AssertionError("a transport gives scores once for every request")
        finally:
            answers.close()

    def _spot_check(self) -> None:
        """Sends some of the skipped tiles all the same, and counts those that would get a label."""
        tiles = spot_check_tiles(self._plan, self._skipped, self._options.spot_check)
        if not tiles:
            return
        with self._scores(tiles) as scores:
            for one in scores:
                self._spot_checked += 1
                self._spot_check_changed += self._prepared.holds_label(np.asarray(one, np.float32))
        self._cancellation.check()

    # Memory --------------------------------------------------------------------------------------------------

    def _memory_estimate(self) -> MemoryEstimate:
        return MemoryEstimate(
            volume=self._volume,
            prepared=self._prepared,
            card=self._card,
            plan=self._plan,
            servers=len(self._transport.servers),
            keep_scores=self._options.keep_scores,
            searched=self._options.skip_empty,
            held_bytes=self._held_bytes,
        )

    def _fitting_schedule(self) -> Schedule:
        options, most = self._options, self._transport.model.max_batch_size
        wanted = min(options.sw_batch_size or most, most)
        in_flight, batch = at_once(options.in_flight, wanted, self._memory.tile_bytes)
        possible = schedules(in_flight, batch, self._plan, self._prepared.strips)
        return fitting_schedule(self._memory, possible, options.max_ram_bytes, half_allowed=options.half_scores)

    # Report --------------------------------------------------------------------------------------------------

    def report(self, labels: NDArray[Any]) -> Report:
        """The report of a finished run that gave `labels` [i, j, k]."""
        shape, grid = self._volume.shape, self._prepared.data.shape[1:]
        inputs = inputs_of(self._prepared, self._card)
        return Report(
            model=self._card.name,
            version=self._transport.model.version,
            shape=shape,
            tiles=len(self._plan) - len(self._skipped),
            seconds=self._watch.stop(),
            bytes_sent=self._traffic.bytes_sent,
            bytes_received=self._traffic.bytes_received,
            peak_rss_bytes=peak_rss_bytes(),
            retries=self._traffic.retries,
            labels=label_volumes(labels, self._volume.voxel_ml, self._card),
            certificate=certificate_summary(self._card),
            engine=self._card.engine,
            servers=list(self._transport.servers),
            grid=(grid[0], grid[1], grid[2]),
            tiling=self._tiling.model_dump(),
            changes=self._changes,
            warnings=list(self._volume.warnings),
            input_rounding=self._prepared.input_rounding,
            skipped_tiles=len(self._skipped),
            spot_checked_tiles=self._spot_checked,
            spot_check_changed_tiles=self._spot_check_changed,
            predicted_peak_bytes=predicted_bytes(self._memory.components(self._schedule)),
            shared_memory=self._traffic.shared_memory,
            in_flight=self._schedule.in_flight,
            batch=self._schedule.batch,
            strips=len(self._schedule.strips),
            tiles_sent_again=sent_again(map(self._sent, self._parts)),
            inputs=inputs,
        )


def inputs_of(prepared: PreparedScan, card: Card) -> dict[str, InputStatistics]:
    """What a scan looks like to the network, by channel; those that a cascade's first stage made are left out."""
    sent = prepared.encode(thinned(prepared.data))
    return dict(zip(card.input_channels, input_statistics(sent, prepared.statistics), strict=False))


def _counter(progress: Progress | None, total: int) -> Callable[[], None]:
    """What to call after each of `total` tiles; a tile that is sent for a second strip counts again."""
    done = itertools.count(1)
    return lambda: progress(next(done), total) if progress else None
