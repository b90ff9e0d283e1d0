"""Segments scans: reads a scan, prepares it, and takes it through a model on a Triton server.

Knows nothing of tiles, gRPC or commands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from voxtile.budget import left_for_preparing, left_for_reading
from voxtile.card import Card, Parts
from voxtile.chains.base import PreparedScan
from voxtile.chains.parts.cleaning import clean
from voxtile.chains.parts.common_grid import CommonGrid, common_grid
from voxtile.chains.parts.cropping import Box, box_around, cut, put_back
from voxtile.chains.parts.painting import empty_mask, paint
from voxtile.chains.prepare import check_installed, prepare_scan, reader_of
from voxtile.errors import InputError, ModelError
from voxtile.io.bids import check_suffixes_as_given
from voxtile.io.channel_numbers import check_numbers_as_given
from voxtile.io.given import Given
from voxtile.io.note import add_note
from voxtile.io.scan import files_of, open_scan
from voxtile.io.volume import Volume
from voxtile.io.writing import mask_image
from voxtile.job import Cancellation, Job, Progress, cancellable
from voxtile.options import Options, changes_in_words, chosen_tiling
from voxtile.outputs.base import Result
from voxtile.outputs.passport import Passport, passport_of
from voxtile.outputs.report import Report, Seconds, Stopwatch
from voxtile.outputs.set_report import set_report
from voxtile.pacs.scans import ScanOrAddress, at_hand
from voxtile.triton.grpc_transport import connect_transport
from voxtile.triton.transport import Transport
from voxtile.triton.types import ServedModel
from voxtile.version import __version__

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Image


@dataclass(frozen=True)
class LoadedScan:
    """A scan that has been read and prepared for one model; it may be run any number of times.

    Attributes:
        volume: the scan.
        prepared: the scan on the model's grid; None for a set of models, each of which has its own.
        seconds: the seconds that reading and preparing took.
        common: for a set, the scan on its common grid; None where what the set looks at is not in the scan.
        box: the part of the scan that a set looks at; None for all of it.
    """

    volume: Volume
    prepared: PreparedScan | None
    seconds: Seconds
    common: CommonGrid | None = None
    box: Box | None = None


@dataclass(frozen=True)
class Segmentation:
    """The result for one scan.

    Attributes:
        mask: an image of the labels, with the geometry of the scan.
        labels: [i, j, k] the labels on the scan's own grid.
        report: what was done.
        scores: [score, i, j, k] float32 on the scan's own grid, where they were to be kept. For an nnU-Net model these
            are probabilities, as nnU-Net exports them.
        place: the scan without its voxels, for `write_image`: a mask in the scan's own format repeats its geometry.
        passport: what made the mask. The report has it too, and in NIfTI the mask's own header.
    """

    mask: Nifti1Image
    labels: NDArray[Any]
    report: Report
    scores: NDArray[np.float32] | None = None
    place: Volume | None = None
    passport: Passport | None = None


Connect = Callable[[str], Transport]
"""Gives what to send a model's tiles through, by the model's name."""


class Segmenter:
    """Segments scans with one model. A context manager, which closes the connections.

    Several threads may segment with one Segmenter at once; each report counts only its own scan (`peak_rss_bytes` is
    that of the process), and `max_ram_mib` applies to each scan. After a fork, make a new Segmenter in the new process;
    one that the parent process made raises ForkError there.

    Args:
        url: HOST:PORT of the gRPC service of a Triton server, or several of them.
        model: the model's public name.
        options: how to segment.
        transport: what to send tiles through, in place of `url` and `model`; closed with the Segmenter.
        connect: gives what to send a model's tiles through, by the model's name, in place of `url`: for `model`, and
            for all models that it needs. What it gives is closed with the Segmenter.
        previous: the first stage of a cascade, where `transport` leads to the second; closed with the Segmenter.
        parts: the models of a set, in its order, where `transport` leads to the set; closed with the Segmenter.
        crop: the model that finds what a set looks at, where `transport` leads to the set; closed with the Segmenter.
        **changes: fields of `options` to replace, such as overlap=0.25.

    Raises:
        InputError: an option does not fit the model, or neither a server with a model nor a transport is given.
        ServerUnavailable: no server answers.
        ModelError: the servers do not offer the model, or offer different builds of it.
        MissingExtraError: the model needs an optional dependency that is not installed.
    """

    def __init__(
        self,
        url: str | Sequence[str] | None = None,
        model: str | None = None,
        options: Options | None = None,
        *,
        transport: Transport | None = None,
        connect: Connect | None = None,
        previous: Segmenter | None = None,
        parts: Sequence[Segmenter] = (),
        crop: Segmenter | None = None,
        **changes: Any,
    ) -> None:
        self.options = replace(options or Options(), **changes)
        self.previous = previous
        self.parts = tuple(parts)
        self.crop = crop
        self._connect = connect or self._connect_to(url)
        self.transport: Transport = transport or self._connected(url, model)
        try:
            check_installed(self.card)
            self.tiling = chosen_tiling(self.card, self.options)
            self.changes = changes_in_words(self.card, self.options)
            if self.card.previous_stage and self.previous is None:
                self.previous = self._first_stage_segmenter(self.card.previous_stage)
            if self.card.parts:
                self._connect_parts(self.card.parts)
        except BaseException:
            self.close()
            raise

    @property
    def card(self) -> Card:
        """The model's card."""
        return self.transport.model.card

    def __call__(self, image: ScanOrAddress, progress: Progress | None = None) -> Nifti1Image:
        """Segments a scan and returns its mask as an image; see `segment`."""
        return self.segment(image, progress).mask

    def segment(
        self, image: ScanOrAddress, progress: Progress | None = None, cancellation: Cancellation | None = None
    ) -> Segmentation:
        """Segments a scan.

        Args:
            image: the scan: a path, the bytes of a file, a nibabel or SimpleITK image, MONAI's MetaTensor, an
                array with its affine, an address in a PACS, or a list of these with one for each channel; see
                `voxtile.io.scan` and `voxtile.pacs.scans`.
            progress: called after each tile.
            cancellation: lets another thread stop the work.

        Returns:
            The mask and the report.

        Raises:
            Cancelled: by `cancellation`.
            InputError: the scan cannot be used.
            MemoryLimitError: the scan cannot be segmented within the memory allowed.
            ServerUnavailable: the PACS that the scan lies in does not answer.
            TileError: the servers refused a request too often.
            NoResponseError: no server has answered for too long.
        """
        cancellation = cancellation or Cancellation()
        loaded = self._load(image, cancellation)
        return self._signed(self._run(loaded, progress, cancellation), loaded.volume)

    async def asegment(self, image: ScanOrAddress, progress: Progress | None = None) -> Segmentation:
        """Segments a scan on another thread, while the event loop goes on; see `segment`.

        Cancelling it cancels the requests in flight and stops the work; it ends when the work has ended.
        """
        return await cancellable(partial(self.segment, image, progress))

    def load(
        self, image: ScanOrAddress, cancellation: Cancellation | None = None, given: Given | None = None
    ) -> LoadedScan:
        """Reads and prepares a scan; another thread may `run` the one before it meanwhile.

        Args:
            image: the scan; see `segment`.
            cancellation: lets another thread stop the work.
            given: what is said of this scan beside what its files say; None for what the options say of all.

        Raises:
            Cancelled: by `cancellation`.
            InputError: the scan cannot be used.
            MemoryLimitError: the prepared scan does not fit into the memory allowed.
        """
        return self._load(image, cancellation or Cancellation(), given)

    def run(
        self, loaded: LoadedScan, progress: Progress | None = None, cancellation: Cancellation | None = None
    ) -> Segmentation:
        """Segments a scan that has been loaded; see `segment`."""
        return self._signed(self._run(loaded, progress, cancellation or Cancellation()), loaded.volume)

    def result(self, loaded: LoadedScan, segmentation: Segmentation, show_patient: bool = False) -> Result:
        """What the outputs of `voxtile.outputs` are made from; `show_patient` lets the page name the patient."""
        made = segmentation
        return Result(loaded.volume, loaded.prepared, self.card, made.labels, made.scores, made.report, show_patient)

    def close(self) -> None:
        """Ends all connections."""
        self.transport.close()
        for other in (self.previous, self.crop, *self.parts):
            if other:
                other.close()

    def __enter__(self) -> Segmenter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _load(self, image: ScanOrAddress, cancellation: Cancellation, given: Given | None = None) -> LoadedScan:
        watch, given = Stopwatch(), given or self.options.given
        with watch.step("read"), at_hand(image, given.dicom) as here:
            check_numbers_as_given(files_of(here.image), self.card.input_channels)
            check_suffixes_as_given(files_of(here.image), self.card.input_channels)
            most = left_for_reading(self.options.max_ram_bytes)
            volume = open_scan(here.image, self.card.input_channels, reader_of(self.card), most, given)
        return self._prepare(here.named(volume), watch, cancellation)

    def _prepare(self, volume: Volume, watch: Stopwatch, cancellation: Cancellation) -> LoadedScan:
        if self.card.parts:
            return self._load_set(volume, self.card.parts, watch, cancellation)
        with watch.step("infer"):
            labels = self._first_stage(volume, cancellation)
        cancellation.check()
        with watch.step("prepare"):
            left = left_for_preparing(volume, self.options.max_ram_bytes)
            prepared = prepare_scan(volume, self.card, labels, self.options.postprocessing, left)
        return LoadedScan(volume, prepared, watch.stop())

    def _run(
        self, loaded: LoadedScan, progress: Progress | None, cancellation: Cancellation, held_bytes: int = 0
    ) -> Segmentation:
        cancellation.check()
        if self.card.parts:
            return self._run_set(loaded, self.card.parts, progress, cancellation)
        assert loaded.prepared is not None, "only a set's scans are not prepared when they are loaded"
        job = Job(
            self.transport,
            self.options,
            self.tiling,
            [*self.changes, *loaded.volume.changes],
            loaded.volume,
            loaded.prepared,
            loaded.seconds,
            cancellation,
            held_bytes,
        )
        labels = job.run(progress)
        mask, place = mask_image(labels, loaded.volume), loaded.volume.without_voxels()
        return Segmentation(mask, labels, job.report(labels), job.scores, place)

    def _signed(self, segmentation: Segmentation, volume: Volume) -> Segmentation:
        """The result of a scan, whose mask and report say what made it."""
        report, mask, watch = segmentation.report, segmentation.mask, Stopwatch(segmentation.report.seconds)
        with watch.step("write"):
            passport = passport_of(report, self.transport.model, volume, __version__, mask, self._models_behind())
            add_note(mask, passport.model_dump_json())
        report = report.model_copy(update={"passport": passport.model_dump(), "seconds": watch.stop()})
        return replace(segmentation, report=report, passport=passport)

    def _models_behind(self) -> list[tuple[str, ServedModel]]:
        """The models that shape a mask besides this one, each with its role; those behind it follow it."""
        behind = [("first stage", self.previous), ("crop", self.crop), *(("part", part) for part in self.parts)]
        found: list[tuple[str, ServedModel]] = []
        for role, one in behind:
            if one is not None:
                found += [(role, one.transport.model), *one._models_behind()]
        return found

    # Connections ---------------------------------------------------------------------------------------------

    def _connect_to(self, url: str | Sequence[str] | None) -> Connect | None:
        if url is None:
            return None
        connection, policy = self.options.connection, self.options.retry_policy
        return lambda model: connect_transport(url, model, connection, policy)

    def _connected(self, url: str | Sequence[str] | None, model: str | None) -> Transport:
        if self._connect is not None and model is not None:
            return self._connect(model)
        return connect_transport(url, model)  # says what is missing

    # Cascades ------------------------------------------------------------------------------------------------

    def _first_stage_segmenter(self, model: str) -> Segmenter:
        if self._connect is None:
            raise InputError(
                f"model {self.card.name!r} is the second stage of a cascade: expected a Segmenter of its first stage, "
                f"{model!r}, as `previous`, found none"
            )
        options = replace(self.options, keep_scores=False, postprocessing=False)
        return Segmenter(model=model, options=options, connect=self._connect)

    def _first_stage(self, volume: Volume, cancellation: Cancellation) -> NDArray[Any] | None:
        """The labels [i, j, k] of a cascade's first stage; None where the model is no second stage."""
        if self.previous is None:
            return None
        cancellation.check()
        left = left_for_preparing(volume, self.options.max_ram_bytes)
        prepared = prepare_scan(volume, self.previous.card, postprocessing=False, max_bytes=left)
        return self.previous._run(LoadedScan(volume, prepared, Seconds()), None, cancellation).labels

    # Sets of models ------------------------------------------------------------------------------------------

    def _connect_parts(self, parts: Parts) -> None:
        """Connects to the models of a set. Raises InputError where scores are asked for, which a set does not have."""
        if self.options.keep_scores:
            raise InputError(
                f"model {self.card.name!r} is a set of models, which gives labels and no scores; ask one of them for "
                f"its scores: {', '.join(part.model for part in parts.models)}"
            )
        if self._connect is None and (len(self.parts) != len(parts.models) or (parts.crop and not self.crop)):
            raise InputError(
                f"model {self.card.name!r} is a set of {len(parts.models)} models: expected a Segmenter of each as "
                f"`parts`, and one that crops as `crop` if it has one, found {len(self.parts)}"
            )
        for part in parts.models[len(self.parts) :]:
            self.parts = (*self.parts, Segmenter(model=part.model, options=self.options, connect=self._connect))
        for part, segmenter in zip(parts.models, self.parts, strict=True):
            if segmenter.card.provenance.weights_sha256 != part.weights_sha256:
                raise ModelError(
                    f"model {self.card.name!r}: expected {part.model!r} as it was built for this set, found other "
                    "weights; build the set again"
                )
        if parts.crop and self.crop is None:
            self.crop = Segmenter(model=parts.crop.model, options=self.options, connect=self._connect)

    def _load_set(self, volume: Volume, parts: Parts, watch: Stopwatch, cancellation: Cancellation) -> LoadedScan:
        box = None
        if parts.crop and self.crop:
            with watch.step("infer"):
                found = self.crop._run(self.crop._prepare(volume, Stopwatch(), cancellation), None, cancellation)
            box = box_around(found.labels, parts.crop.labels, parts.crop.margin_mm, volume.affine)
            if box is None:
                return LoadedScan(volume, None, watch.stop())
        cancellation.check()
        with watch.step("prepare"):
            left = left_for_preparing(volume, self.options.max_ram_bytes)
            common = common_grid(cut(volume, box) if box else volume, self.card, left)
        return LoadedScan(volume, None, watch.stop(), common, box)

    def _run_set(
        self, loaded: LoadedScan, parts: Parts, progress: Progress | None, cancellation: Cancellation
    ) -> Segmentation:
        """The mask of a set: one model after the other, each painted over those before."""
        watch, volume, common = Stopwatch(loaded.seconds), loaded.volume, loaded.common
        most = max(label.value for label in self.card.labels)
        reports: list[Report] = []
        if common is None:
            labels = empty_mask(volume.shape, most)
        else:
            mask = empty_mask(common.volume.shape, most)
            held = volume.nbytes + mask.nbytes
            for part, segmenter in zip(parts.models, self.parts, strict=True):
                share = _share(progress, reports, len(self.parts) - len(reports))
                done = segmenter._segment_part(common.volume, share, cancellation, held)
                watch.add(done.report.seconds)
                reports.append(done.report)
                paint(mask, done.labels, part.labels)
            with watch.step("restore"):
                clean(mask, parts.cleaning, common.volume.header_spacing)
                labels = common.undo(mask)
                labels = put_back(labels, loaded.box, volume.shape) if loaded.box else labels
        changes = [*self.changes, *volume.changes]
        report = set_report(self.transport.model, volume, labels, reports, watch.stop(), changes)
        return Segmentation(mask_image(labels, volume), labels, report, place=volume.without_voxels())

    def _segment_part(
        self, volume: Volume, progress: Progress | None, cancellation: Cancellation, held_bytes: int
    ) -> Segmentation:
        """The labels of one model of a set on the common grid. What nnU-Net learned to remove stays."""
        watch = Stopwatch()
        with watch.step("infer"):
            labels = self._first_stage(volume, cancellation)
        cancellation.check()
        with watch.step("prepare"):
            left = left_for_preparing(volume, self.options.max_ram_bytes)
            left = None if left is None else max(left - held_bytes, 0)
            prepared = prepare_scan(volume, self.card, labels, False, left)
        return self._run(LoadedScan(volume, prepared, watch.stop()), progress, cancellation, held_bytes)


def _share(progress: Progress | None, reports: Sequence[Report], left: int) -> Progress | None:
    """The progress of one of several models, after those with `reports`; each of those left is taken to be as long."""
    before = sum(report.tiles + report.skipped_tiles + report.tiles_sent_again for report in reports)
    return None if progress is None else lambda done, total: progress(before + done, before + left * total)
