"""An engine's certificate: the same tiles and scans through fp32 PyTorch and through the engine, and the figures.

The certificate holds nothing that changes from one build to the next on one machine: no dates and no times. Those
stand in build.json beside it, so that the digest of the certificate is a digest of what was proven.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from voxtile import card
from voxtile_build.certificate.archive import FILE as EVIDENCE
from voxtile_build.certificate.archive import pack
from voxtile_build.certificate.limits import limits_of as limits_of
from voxtile_build.certificate.limits import violations as violations
from voxtile_build.certificate.page import Picture, picture_of, write_page
from voxtile_build.engines.base import Compiled, Engine
from voxtile_build.errors import AcceptanceError
from voxtile_build.evaluation.evaluate import measure_scan, measure_tiles, run_tiles, summary
from voxtile_build.evaluation.metrics import masks
from voxtile_build.evaluation.samples import Scan, Tile, cut_tiles, gather_scans
from voxtile_build.evaluation.whole_scan import segment, torch_runner
from voxtile_build.graph.wrapper import Wrapper
from voxtile_build.hashing import bytes_sha256, file_sha256
from voxtile_build.machine import machine, versions
from voxtile_build.repository.config import warm_up_sizes
from voxtile_build.repository.entries import CERTIFICATE
from voxtile_build.spec.spec import Spec

Array = NDArray[Any]

VERSION = 1


@dataclass(frozen=True)
class Reference:
    """What fp32 PyTorch says: scores of each tile [score, *roi] and of each scan [score, *spatial]."""

    tiles: tuple[tuple[Tile, Array], ...]
    scans: tuple[tuple[Scan, Array], ...]


@dataclass(frozen=True)
class Certificate:
    """content: what certificate.json says; seconds: of one ROI at each batch size, kept apart.

    evidence: the reference in the form in which it is stored; pictures: where voxels change, a scan each.
    """

    content: dict[str, Any]
    seconds: dict[str, float]
    evidence: bytes = b""
    pictures: tuple[Picture, ...] = ()

    def write(self, folder: Path) -> str:
        """Write `folder`/certificate.json, its page with pictures, and the evidence; returns the first's SHA-256."""
        (folder / EVIDENCE).write_bytes(self.evidence)
        write_page(folder, self.content, self.pictures)
        text = json.dumps(self.content, indent=2) + "\n"
        (folder / CERTIFICATE).write_text(text, encoding="utf-8")
        return bytes_sha256(text.encode())


def make_reference(wrapper: Wrapper, spec: Spec) -> Reference:
    """Run tiles and scans through fp32 PyTorch, once for all engines.

    Raises ScanError where a scan of the spec cannot be used.
    """
    run = torch_runner(wrapper)
    scans = gather_scans(spec)
    tiles = cut_tiles(scans[0], spec)
    return Reference(
        tuple((tile, run_tiles([tile], spec, run)[0]) for tile in tiles),
        tuple((scan, segment(scan, spec, run, spec.serving.max_batch_size)) for scan in scans),
    )


def certify(
    spec: Spec, engine: Engine, compiled: Compiled, reference: Reference, hashes: Mapping[str, Any]
) -> Certificate:
    """Measure an engine; the certificate says whether it is accepted.

    hashes: of weights and ONNX file; those of the engine's files are added.
    Raises AcceptanceError at once where the engine gives NaN or infinity, for no figure could be taken then.
    """
    seconds: dict[str, float] = {}
    tiles: list[dict[str, Any]] = []
    most, spacing = spec.serving.max_batch_size, reference.scans[0][0].spacing
    for batch in warm_up_sizes(most):
        between = 1 < batch < most
        found, fastest = measure_tiles(
            spec, engine.name, compiled.run, reference.tiles, batch, spacing=spacing, once=between
        )
        if not between:  # a single run holds the compilation for that size
            seconds[f"batch {batch}"] = fastest
        tiles += found
    stitched = [segment(scan, spec, compiled.run, most) for scan, _ in reference.scans]
    scans = [
        measure_scan(spec, engine.name, scan, expected, found, most)
        for (scan, expected), found in zip(reference.scans, stitched, strict=True)
    ]
    figures = summary(tiles, scans)
    evidence = pack(spec, reference.tiles, reference.scans)
    limits = limits_of(spec, compiled.precision)
    content = {
        "schema_version": VERSION,
        "model": spec.name,
        "version": spec.version,
        "engine": engine.name,
        "precision": compiled.precision,
        "accepted": not violations(figures, limits),
        "acceptance": limits,
        "figures": figures,
        "tiles": tiles,
        "scans": scans,
        **({"precision_facts": compiled.facts} if compiled.facts else {}),
        "notes": list(compiled.notes),
        "evidence": {"file": EVIDENCE, "sha256": bytes_sha256(evidence)},
        "hashes": {**hashes, "files": {file.name: file_sha256(file) for file in compiled.files}},
        "versions": {**versions(), engine.name: engine.version},
        "machine": machine(),
    }
    pictures = tuple(
        picture_of(scan, masks(expected, spec.output), masks(found, spec.output))
        for (scan, expected), found in zip(reference.scans, stitched, strict=True)
    )
    return Certificate(content, seconds, evidence, pictures)


def require_accepted(certificate: Mapping[str, Any]) -> None:
    """Raises AcceptanceError with every figure that was missed: what was asked for, what was found."""
    missed = violations(certificate["figures"], certificate["acceptance"])
    if missed:
        raise AcceptanceError(
            f"{certificate['model']}: the {certificate['engine']} engine ({certificate['precision']}) is not accepted, "
            f"nothing was published: {'; '.join(missed)}"
        )


def short_form(content: Mapping[str, Any], sha256: str) -> card.Certificate:
    """What the card says of a certificate.

    Args:
        content: of certificate.json.
        sha256: of that file.
    """
    figures = content["figures"]
    return card.Certificate(
        sha256=sha256,
        accepted=content["accepted"],
        precision=content["precision"],
        dice_min=figures["dice_min"],
        changed_fraction=figures["changed_fraction"],
        max_abs_error=figures["max_abs_error"],
    )
