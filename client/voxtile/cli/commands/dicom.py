"""`voxtile dicom`: a DICOM series in, DICOM objects about it out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from voxtile.cli import options
from voxtile.cli.console import errors_for_the_user, progress_bar, say
from voxtile.cli.output_options import OutputFiles, files_of
from voxtile.cli.pacs_options import PacsOptions
from voxtile.cli.written import check_report_file, failures_of, report_file_of, write_report
from voxtile.errors import OutputError
from voxtile.io.atomic import check_writable
from voxtile.io.same_file import check_outputs_apart
from voxtile.io.writing import write_image
from voxtile.outputs.base import Output
from voxtile.outputs.dicom.finding import finding_of, source_of
from voxtile.outputs.dicom.frames import frames_of
from voxtile.outputs.dicom.seg import SegKind, advice_of
from voxtile.outputs.dicom.structures import structures_of
from voxtile.outputs.dicom.write import KINDS, SUFFIX, Kind, check_kinds, write_objects
from voxtile.outputs.report import Stopwatch
from voxtile.segmenter import Segmenter

NIFTI = "mask.nii.gz"


def dicom(
    places: Annotated[
        list[Path],
        typer.Argument(
            metavar="[IN] OUT",
            help="IN: a series or a study, as a folder, a zip, or a file; or --from. "
            "OUT: a folder, new or not; or a name that ends in .dcm, for the SEG alone.",
        ),
    ],
    model: options.Model,
    server: options.ServerOptions,
    scan: options.ScanOptions,
    method: options.MethodOptions,
    transfer: options.TransferOptions,
    beside: OutputFiles,
    pacs: PacsOptions,
    seg: Annotated[
        SegKind, typer.Option(help="How seg.dcm is encoded: bits (widest support), or one number a voxel (smaller).")
    ] = "binary",
    sr: Annotated[bool, typer.Option("--sr", help="Also write sr.dcm: volumes and intensities, as TID 1500.")] = False,
    sc: Annotated[
        bool, typer.Option("--sc", help="Also write sc.dcm: a picture with volumes, for any viewer.")
    ] = False,
    rtstruct: Annotated[bool, typer.Option("--rtstruct", help="Also write rtstruct.dcm: closed outlines.")] = False,
    nifti: Annotated[bool, typer.Option("--nifti", help=f"Also write {NIFTI}.")] = False,
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE|-", help="Write the report as JSON; - for standard output.")
    ] = None,
    quiet: options.Quiet = False,
) -> None:
    """Segment a DICOM series and write what was found as DICOM: a SEG on the series' own frames, and more on request.

    The SEG is written first. If another output fails, the others are still written, and the exit code says so.
    """
    beside_files = files_of(beside)
    *inputs, output = places
    with errors_for_the_user(), ExitStack() as stack:
        kinds = [kind for kind, wanted in zip(KINDS, (True, sr, sc, rtstruct), strict=True) if wanted]
        check_kinds(kinds)
        keep_scores = any(one.needs_scores for one, _ in beside_files)
        chosen = options.library_options(server, scan, method, transfer, keep_scores=keep_scores)
        files = _files(output, kinds)
        mask = _mask_file(output) if nifti else None
        pacs.check()
        came = stack.enter_context(pacs.scan(inputs, scan.series))
        made = [*files.values(), *([mask] if mask else [])]
        _check(came.folder, output, made, beside_files, report_file_of(json_file))
        with Segmenter(server.url, model, chosen) as segmenter:
            for one, _ in beside_files:
                one.check_model(segmenter.card)
            structures_of(segmenter.card)
            loaded = segmenter.load(came.folder)
            frames_of(source_of(loaded.volume), "")  # what the headers lack is said before any tile is sent
            with progress_bar("segmenting", quiet) as progress:
                segmentation = segmenter.run(loaded, progress)
        watch = Stopwatch(segmentation.report.seconds)
        with watch.step("write"):
            _make_folder(output)
            # The mask is safe before what is made of it.
            failures = failures_of([partial(write_image, segmentation.mask, mask, loaded.volume)] if mask else [])
            assert segmentation.passport is not None, "what a scan gives is signed"
            finding = finding_of(loaded.volume, segmentation.labels, segmenter.card, segmentation.passport)
            not_made = write_objects(finding, files, seg)
            # Of several, one that could not be made may lie there from before.
            to_store = [files["seg"]] if not_made else [*files.values()]
            failures += [*not_made, *failures_of([partial(_store, pacs, to_store)])]
            result = segmenter.result(loaded, segmentation)
            failures += failures_of(partial(one.save, result, file) for one, file in beside_files)
        warnings = [*came.warnings, *segmentation.report.warnings, *finding.warnings]
        changes = {"seconds": watch.stop(), "warnings": warnings}
        failures += failures_of([partial(write_report, segmentation.report.model_copy(update=changes), json_file)])
        for line in (*came.warnings, *finding.warnings, advice_of(finding, seg)):
            if line and not quiet:
                say(line)
        if failures:
            raise OutputError(f"{'; '.join(failures)}; the SEG is written to {files['seg']}")


def _store(pacs: PacsOptions, files: Sequence[Path]) -> None:
    """Stores objects where --to says, and tells which were there already."""
    there = pacs.store(files).there
    if there:
        say(f"the PACS has it already, and was not sent it again: {', '.join(file.name for file in there)}")


def _is_object(output: Path) -> bool:
    """Whether OUT is one object, and not a folder."""
    return output.suffix.lower() == SUFFIX and not output.is_dir()


def _files(output: Path, kinds: Sequence[Kind]) -> dict[Kind, Path]:
    """The file of each kind of object. Raises OutputError where there is no place for one."""
    if not _is_object(output):
        return {kind: output / f"{kind}{SUFFIX}" for kind in kinds}
    if len(kinds) > 1:
        raise OutputError(f"{output}: expected a folder for --{kinds[1]}, found the name of one object; name a folder")
    return {"seg": output}


def _mask_file(output: Path) -> Path:
    if _is_object(output):
        raise OutputError(f"{output}: expected a folder for --nifti, found the name of one object; name a folder")
    return output / NIFTI


def _check(
    inputs: Path,
    output: Path,
    files: Sequence[Path],
    beside: Sequence[tuple[Output, Path]],
    report_file: Path | None,
) -> None:
    """Checks every output's name, place and identity. Raises OutputError."""
    check_report_file(report_file)
    folder = output.parent if _is_object(output) else output
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{output}: expected a folder or a name that ends in {SUFFIX}, found a file")
    if inputs.is_dir() and (folder.resolve() == inputs.resolve() or inputs.resolve() in folder.resolve().parents):
        raise OutputError(f"{output}: lies in the scan's own folder {inputs}, which stays as it is; choose another one")
    outside = [(f"the file of --{one.name}", each) for one, file in beside for each in one.files(file)]
    outside += [("the report", report_file)] if report_file is not None else []
    scan = [path for path in inputs.rglob("*") if path.is_file()] if inputs.is_dir() else [inputs]
    check_outputs_apart(scan, [*(("the object", file) for file in files), *outside])
    for _, path in outside:
        check_writable(path)
    if folder.exists() or _is_object(output):
        for path in files:
            check_writable(path)
    else:
        check_writable(_first_existing(folder) / folder.name)


def _first_existing(folder: Path) -> Path:
    """The innermost folder above a new one that exists."""
    return next((above for above in folder.parents if above.exists()), Path())


def _make_folder(output: Path) -> None:
    if _is_object(output):
        return
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{output}: cannot be made ({error.strerror or error})") from None
