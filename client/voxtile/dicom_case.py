"""Segments one DICOM series and writes the objects that are asked for about it: a series in, DICOM objects out.

Knows nothing of commands, and nothing of where a series comes from and where its objects go to.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from voxtile.card import Card
from voxtile.errors import OutputError, failures_of
from voxtile.io.atomic import check_writable
from voxtile.io.same_file import check_outputs_apart
from voxtile.io.writing import write_image
from voxtile.job import Cancellation, Progress
from voxtile.outputs.base import Output
from voxtile.outputs.dicom.finding import finding_of, source_of
from voxtile.outputs.dicom.seg import SegKind, advice_of
from voxtile.outputs.dicom.structures import structures_of
from voxtile.outputs.dicom.write import SUFFIX, Kind, check_kinds, write_objects
from voxtile.outputs.report import Report, Stopwatch
from voxtile.segmenter import LoadedScan, Segmentation, Segmenter

NIFTI = "mask.nii.gz"

Store = Callable[[Sequence[Path]], None]
"""Takes the objects that are written to somewhere else. Raises VoxtileError where it cannot."""


@dataclass(frozen=True)
class CaseOutputs:
    """What is to be written about a series, and where to.

    Attributes:
        output: a folder, new or not; or a name that ends in .dcm, for the SEG alone.
        kinds: the kinds of objects; the SEG is always among them.
        seg: how the SEG is encoded.
        nifti: whether the mask is also written as NIfTI.
        beside: further outputs, each with its file.
        others: what else the caller will write, each with a word for what it is; only checked here.
        show_patient: whether further outputs may name the patient; the objects always do.
    """

    output: Path
    kinds: Sequence[Kind] = ("seg",)
    seg: SegKind = "binary"
    nifti: bool = False
    beside: Sequence[tuple[Output, Path]] = ()
    others: Sequence[tuple[str, Path]] = ()
    show_patient: bool = False

    @property
    def alone(self) -> bool:
        """Whether `output` is one object, and not a folder."""
        return self.output.suffix.lower() == SUFFIX and not self.output.is_dir()

    @property
    def folder(self) -> Path:
        """The folder that is written into."""
        return self.output.parent if self.alone else self.output

    @property
    def objects(self) -> dict[Kind, Path]:
        """The file of each kind of object. Raises OutputError where there is no place for one."""
        if not self.alone:
            return {kind: self.output / f"{kind}{SUFFIX}" for kind in self.kinds}
        for kind in self.kinds:
            if kind != "seg":
                raise self._no_folder(kind)
        return {"seg": self.output}

    @property
    def mask(self) -> Path | None:
        """The file of the mask as NIfTI. Raises OutputError where there is no place for it."""
        if self.nifti and self.alone:
            raise self._no_folder("nifti")
        return self.output / NIFTI if self.nifti else None

    @property
    def needs_scores(self) -> bool:
        """Whether the scores are to be kept, with the option `keep_scores`."""
        return any(one.needs_scores for one, _ in self.beside)

    def check(self, scans: Sequence[Path] = ()) -> None:
        """Checks all that can be before any work: packages, names, places, and that no file takes another one's place.

        Args:
            scans: where the series is read from, as far as that is known yet.

        Raises:
            MissingExtraError: a package is missing.
            OutputError: a file cannot be written.
        """
        check_kinds(self.kinds)
        files = [*self.objects.values(), *([self.mask] if self.mask else [])]
        if self.folder.exists() and not self.folder.is_dir():
            raise OutputError(f"{self.output}: expected a folder or a name that ends in {SUFFIX}, found a file")
        for scan in scans:
            self._check_outside(scan)
        outside = [(f"the file of --{one.name}", each) for one, file in self.beside for each in one.files(file)]
        outside += self.others
        read = [file for scan in scans for file in _files_in(scan)]
        check_outputs_apart(read, [*(("the object", file) for file in files), *outside])
        for _, file in outside:
            check_writable(file)
        if not self.folder.exists() and not self.alone:
            files = [_first_existing(self.folder) / self.folder.name]
        for file in files:
            check_writable(file)

    def check_model(self, card: Card) -> None:
        """Checks that a model can have these outputs. Raises VoxtileError where it cannot."""
        for one, _ in self.beside:
            one.check_model(card)
        structures_of(card)

    def make_folder(self) -> None:
        """Makes the folder that is written into. Raises OutputError where it cannot."""
        if self.alone:
            return
        try:
            self.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self.output}: cannot be made ({error.strerror or error})") from None

    def _no_folder(self, option: str) -> OutputError:
        return OutputError(f"{self.output}: expected a folder for --{option}, found the name of one object; name a "
                           "folder")  # fmt: skip

    def _check_outside(self, scan: Path) -> None:
        folder = self.folder.resolve()
        if scan.is_dir() and scan.resolve() in (folder, *folder.parents):
            raise OutputError(
                f"{self.output}: lies in the scan's own folder {scan}, which stays as it is; choose another one"
            )


@dataclass(frozen=True)
class CaseDone:
    """What was written about a series.

    Attributes:
        objects: the file of each kind of object that was asked for.
        report: what was done; nothing in it names a patient.
        notes: what a user should know of the objects, in words.
        failures: what could not be written or stored, and why; the SEG is there.
    """

    objects: Mapping[Kind, Path]
    report: Report
    notes: tuple[str, ...]
    failures: tuple[str, ...]


def segment_series(
    segmenter: Segmenter,
    scan: Path | Sequence[Path],
    outputs: CaseOutputs,
    store: Store | None = None,
    showing: contextlib.AbstractContextManager[Progress | None] | None = None,
    cancellation: Cancellation | None = None,
) -> CaseDone:
    """Segments a series and writes what is asked for. What can be checked is checked before the first tile is sent.

    Args:
        segmenter: the model; it keeps scores where `outputs` needs them.
        scan: a folder, a zip, or a file; or several, with one for each channel of the model.
        outputs: what is to be written.
        store: takes the objects to somewhere else, once they are written.
        showing: entered while tiles are sent; what it gives is called after each tile.
        cancellation: lets another thread stop the work.

    Raises:
        Cancelled: by `cancellation`.
        InputError: the series cannot be used.
        OutputError: an output cannot be written, or the SEG could not be made of this series.
        VoxtileError: what `Segmenter.segment` raises.
    """
    scans = [scan] if isinstance(scan, Path) else list(scan)
    outputs.check(scans)
    outputs.check_model(segmenter.card)
    loaded = segmenter.load(scans, cancellation)
    source_of(loaded.volume)  # of another format nothing can be written; told before any tile is sent
    with showing or contextlib.nullcontext() as progress:
        segmentation = segmenter.run(loaded, progress, cancellation)
    return _written(segmenter, loaded, segmentation, outputs, store)


def _written(
    segmenter: Segmenter, loaded: LoadedScan, segmentation: Segmentation, outputs: CaseOutputs, store: Store | None
) -> CaseDone:
    """Writes all outputs: the mask before what is made of it, the SEG before the other objects."""
    watch = Stopwatch(segmentation.report.seconds)
    with watch.step("write"):
        outputs.make_folder()
        objects, mask = outputs.objects, outputs.mask
        failures = failures_of([partial(write_image, segmentation.mask, mask, loaded.volume)] if mask else [])
        assert segmentation.passport is not None, "what a scan gives is signed"
        finding = finding_of(loaded.volume, segmentation.labels, segmenter.card, segmentation.passport)
        not_made = write_objects(finding, objects, outputs.seg)
        failures += not_made
        if store is not None:
            # Of several, one that could not be made may lie there from before.
            failures += failures_of([partial(store, [objects["seg"]] if not_made else [*objects.values()])])
        result = segmenter.result(loaded, segmentation, outputs.show_patient)
        failures += failures_of(partial(one.save, result, file) for one, file in outputs.beside)
    warnings = [*segmentation.report.warnings, *finding.warnings]
    report = segmentation.report.model_copy(update={"seconds": watch.stop(), "warnings": warnings})
    notes = tuple(line for line in (*finding.warnings, advice_of(finding, outputs.seg)) if line)
    return CaseDone(objects, report, notes, tuple(failures))


def _files_in(scan: Path) -> list[Path]:
    return [file for file in scan.rglob("*") if file.is_file()] if scan.is_dir() else [scan]


def _first_existing(folder: Path) -> Path:
    """The innermost folder above a new one that exists."""
    return next((above for above in folder.parents if above.exists()), Path())
