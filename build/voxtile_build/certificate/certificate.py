"""Makes an engine's certificate: the same tiles and scans through fp32 PyTorch and through the engine, and the metrics.

A certificate holds nothing that changes from one build to the next on one machine: no dates and no times. Those are in
build.json beside it, so that the digest of the certificate is a digest of what was proven.
"""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from voxtile import card
from voxtile_build.arrays import Array, Feed, Runner
from voxtile_build.certificate.archive import SAMPLES, pack
from voxtile_build.certificate.device import device_name
from voxtile_build.certificate.distillation import notes_of, student_of
from voxtile_build.certificate.input_ranges import input_ranges
from voxtile_build.certificate.limits import limits_of, named, unseen_violations, violations
from voxtile_build.certificate.page import Picture, picture_of, write_page
from voxtile_build.certificate.reference_error import raised, reference_error
from voxtile_build.engines.base import Compiled, Engine
from voxtile_build.errors import AcceptanceError
from voxtile_build.evaluation.evaluate import Record, measure_scan, measure_tiles, run_tiles
from voxtile_build.evaluation.metrics import masks
from voxtile_build.evaluation.samples import Scan, gather_scans
from voxtile_build.evaluation.summary import summary, unseen_labels
from voxtile_build.evaluation.tiles import Tile, cut_tiles
from voxtile_build.evaluation.whole_scan import segment, torch_runner, windows
from voxtile_build.graph.wrapper import Wrapper
from voxtile_build.hashing import bytes_sha256, file_sha256
from voxtile_build.machine import machine, versions
from voxtile_build.progress import counted
from voxtile_build.repository.config import warm_up_sizes
from voxtile_build.repository.entries import CERTIFICATE
from voxtile_build.spec.spec import Spec

VERSION = 1


@dataclass(frozen=True)
class Reference:
    """What fp32 PyTorch gives: scores of each tile [score, *roi] and of each scan [score, *spatial].

    `error` measures how far that is from float64, which takes long: it is called once, and only if it can decide.
    `seconds` is what PyTorch takes for one tile of the first size, in the fastest of its runs, at any batch.
    """

    tiles: tuple[tuple[Tile, Array], ...]
    scans: tuple[tuple[Scan, Array], ...]
    error: Callable[[], Mapping[str, float]] = dict
    seconds: float = math.nan


@dataclass(frozen=True)
class Certificate:
    """A certificate before it is written.

    Attributes:
        content: of certificate.json.
        seconds: for one tile at each batch size; not part of the content.
        samples: the reference as bytes of a file.
        pictures: where voxels change, one a scan.
    """

    content: dict[str, Any]
    seconds: dict[str, float]
    samples: bytes = b""
    pictures: tuple[Picture, ...] = ()

    def write(self, folder: Path) -> str:
        """Write certificate.json, its page with pictures, and the samples into `folder`.

        Returns:
            SHA-256 of certificate.json.
        """
        (folder / SAMPLES).write_bytes(self.samples)
        write_page(folder, self.content, self.pictures)
        text = json.dumps(self.content, indent=2) + "\n"
        (folder / CERTIFICATE).write_text(text, encoding="utf-8")
        return bytes_sha256(text.encode())


def make_reference(wrapper: Wrapper, spec: Spec) -> Reference:
    """Run tiles and scans through fp32 PyTorch, once for all engines.

    Raises:
        ScanError: a scan of the spec cannot be used.
    """
    scans = gather_scans(spec)
    cut = cut_tiles(scans[0], spec)
    seconds: list[float] = []
    run = _timed(torch_runner(wrapper), cut[0].roi.shape, seconds)
    run = counted(run, len(cut) + sum(windows(scan, spec) for scan in scans))
    tiles = tuple((tile, run_tiles([tile], spec, run)[0]) for tile in cut)
    return Reference(
        tiles,
        tuple((scan, segment(scan, spec, run, spec.serving.max_batch_size)) for scan in scans),
        functools.cache(lambda: reference_error(wrapper, spec, tiles)),
        min(seconds),
    )


def _timed(run: Runner, shape: tuple[int, ...], seconds: list[float]) -> Runner:
    """The same runner; it adds to `seconds` what one tile of `shape` [channel, *roi] took in each run, at any batch."""

    def running(feed: Feed) -> Array:
        started = time.perf_counter()
        scores = run(feed)
        if feed["roi"].shape[1:] == shape:
            seconds.append((time.perf_counter() - started) / len(feed["roi"]))
        return scores

    return running


def certify(
    spec: Spec, engine: Engine, compiled: Compiled, reference: Reference, hashes: Mapping[str, Any]
) -> Certificate:
    """Measure an engine; the certificate says whether it is accepted.

    Args:
        spec: the model.
        engine: the engine.
        compiled: its files, and what runs them.
        reference: what fp32 PyTorch gives.
        hashes: of weights and ONNX file; those of the engine's files are added.

    Raises:
        AcceptanceError: a score of the engine is NaN or infinite, so that nothing can be measured.
    """
    compiled = replace(compiled, run=counted(compiled.run, _tiles_to_run(spec, reference)))
    tiles, seconds = _measured_tiles(spec, engine, compiled, reference)
    most = spec.serving.max_batch_size
    stitched = [segment(scan, spec, compiled.run, most) for scan, _ in reference.scans]
    scans = [
        measure_scan(spec, engine.name, scan, expected, found, most)
        for (scan, expected), found in zip(reference.scans, stitched, strict=True)
    ]
    metrics, unseen = summary(tiles, scans), unseen_labels(scans)
    limits, own = limits_of(spec, compiled.precision), {}
    if compiled.precision == "fp32" and violations(metrics, limits):
        own = dict(reference.error())
        limits = raised(limits, spec.acceptance, own)
    inputs = input_ranges(spec, [scan for scan, _ in reference.scans])
    samples, student = pack(spec, reference.tiles, reference.scans), student_of(spec)
    measured_on = engine.certified_on(spec)
    device = {"kind": measured_on, "name": device_name(measured_on)}
    serves_on = engine.serves_on(spec)
    content = {
        "schema_version": VERSION,
        "model": spec.name,
        "version": spec.version,
        "engine": engine.name,
        "precision": compiled.precision,
        "device": device,
        "serves_on": serves_on,
        "accepted": not (violations(metrics, limits) or unseen_violations(unseen, limits)),
        "acceptance": limits,
        "metrics": metrics,
        **({"reference_error": own} if own else {}),
        "unseen_labels": unseen,
        **({"student_of": student.model_dump(mode="json")} if student else {}),
        **({"inputs": [one.model_dump(mode="json") for one in inputs]} if inputs else {}),
        "tiles": tiles,
        "scans": scans,
        **({"precision_facts": compiled.facts} if compiled.facts else {}),
        "warnings": [*notes_of(spec), *compiled.warnings, *_warnings(device["kind"], serves_on, unseen)],
        "samples": {"file": SAMPLES, "sha256": bytes_sha256(samples)},
        "hashes": {**hashes, "files": {file.name: file_sha256(file) for file in compiled.files}},
        "versions": {**versions(), engine.name: engine.version},
        "machine": machine(),
    }
    pictures = tuple(
        picture_of(scan, masks(expected, spec.output), masks(found, spec.output))
        for (scan, expected), found in zip(reference.scans, stitched, strict=True)
    )
    return Certificate(content, seconds, samples, pictures)


def _measured_tiles(
    spec: Spec, engine: Engine, compiled: Compiled, reference: Reference
) -> tuple[list[Record], dict[str, float]]:
    """Records of all tiles at every batch size that is warmed up, and seconds for one tile by batch size."""
    records: list[Record] = []
    seconds: dict[str, float] = {}
    most, spacing = spec.serving.max_batch_size, reference.scans[0][0].spacing
    for batch in warm_up_sizes(most):
        between = 1 < batch < most
        found, fastest = measure_tiles(
            spec, engine.name, compiled.run, reference.tiles, batch, spacing=spacing, once=between
        )
        if not between:  # the time of a single run includes compilation for that batch size
            seconds[f"batch {batch}"] = fastest
        records += found
    return records, seconds


def _tiles_to_run(spec: Spec, reference: Reference) -> int:
    """About how many tiles a certificate takes: tiles of several sizes may need a few more to fill their batches."""
    tiles, most = len(reference.tiles), spec.serving.max_batch_size
    at_each = [batch if 1 < batch < most else -(-tiles // batch) * batch for batch in warm_up_sizes(most)]
    return sum(at_each) + sum(windows(scan, spec) for scan, _ in reference.scans)


def _warnings(measured_on: str, serves_on: str, unseen: Mapping[str, int]) -> Iterator[str]:
    """What the samples do not prove, a sentence each."""
    if measured_on != serves_on:
        yield (
            f"not certified on this device: it was measured on the {measured_on.upper()} and will run on a "
            f"{serves_on.upper()}; start the server, then run voxtile-build verify with --url"
        )
    if unseen:
        yield (
            f"labels that the scans hardly show, so that their Dice proves nothing: {named(unseen)}; name scans that "
            "show them in acceptance.scans"
        )


def require_accepted(certificate: Mapping[str, Any]) -> None:
    """Refuse an engine that is not accepted.

    Args:
        certificate: the content of certificate.json.

    Raises:
        AcceptanceError: names every limit that is violated, and what was found.
    """
    metrics, limits = certificate["metrics"], certificate["acceptance"]
    violated = violations(metrics, limits)
    if violated:
        violated[-1] += f"; the largest error is in {_worst_place(certificate)}; {WAY_OUT}"
    violated += unseen_violations(certificate["unseen_labels"], limits)
    if violated:
        raise AcceptanceError(
            f"{certificate['model']}: the {certificate['engine']} engine ({certificate['precision']}) is not accepted: "
            f"{'; '.join(violated)}"
        )


WAY_OUT = (
    "choose another precision, leave this engine out of serving.engines, or, if you can accept this, set the limit in "
    "[acceptance]: max_abs_error, max_logit_error, max_score_error, min_dice or max_changed"
)


def _worst_place(certificate: Mapping[str, Any]) -> str:
    """The tile or scan with the largest error, as the end of a sentence."""
    tiles, scans = ([one for one in certificate[kind] if not one.get("constant")] for kind in ("tiles", "scans"))
    worst = max((*tiles, *scans), key=lambda record: float(record["max_abs_error"]))
    return f"{'scan' if any(worst is one for one in scans) else 'tile'} '{worst['name']}'"


def short_form(content: Mapping[str, Any], sha256: str) -> card.Certificate:
    """What the card says of a certificate.

    Args:
        content: of certificate.json.
        sha256: of that file.
    """
    metrics = content["metrics"]
    return card.Certificate(
        sha256=sha256,
        accepted=content["accepted"],
        precision=content["precision"],
        dice_min=metrics["dice_min"],
        changed_fraction=metrics["changed_fraction"],
        max_abs_error=metrics["max_abs_error"],
        device=content["device"]["kind"],
        device_name=content["device"]["name"],
        serves_on=content["serves_on"],
        unseen_labels=tuple(content["unseen_labels"]),
        inputs=content.get("inputs", ()),
    )
