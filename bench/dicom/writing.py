"""Ways to write a mask as a DICOM object: each is made ready from a job, and then called once a run.

A run begins with the mask in memory and ends with the file; the scan's objects are read before it, but for
TotalSegmentator, which reads them in its own function. A job holds `series` (a folder), `mask` (.npy), `structures`,
`kind` and `file`. `voxels` of a run are those of all structures in a SEG, counted outside the seconds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from voxtile.card import Card
from voxtile.outputs.passport import Passport

from ..engines import Job, Way
from ..memory import peak_rss_bytes


def voxtile(job: Job) -> Way:
    """Our writers: `kind` is "binary", "labelmap", "rtstruct" or "sr"; the SR names a SEG that is made before it."""
    from voxtile.io.scan import open_scan
    from voxtile.outputs.dicom.contours import structure_set_of
    from voxtile.outputs.dicom.finding import finding_of
    from voxtile.outputs.dicom.measurements import report_of
    from voxtile.outputs.dicom.seg import seg_of
    from voxtile.outputs.dicom.write import write_object

    volume, labels = open_scan(Path(job["series"]), ("CT",)), np.load(job["mask"])
    card, passport, kind = _card(job["structures"]), _passport(), job["kind"]
    makers: dict[str, Callable[[Any], Any]] = {
        "binary": lambda finding: seg_of(finding, "binary"),
        "labelmap": lambda finding: seg_of(finding, "labelmap"),
        "rtstruct": structure_set_of,
    }
    if kind == "sr":
        seg = seg_of(finding_of(volume, labels, card, passport), "labelmap")
        makers["sr"] = lambda finding: report_of(finding, seg)

    def write() -> None:
        write_object(makers[kind](finding_of(volume, labels, card, passport)), Path(job["file"]))

    return _measured(job, write)


def highdicom(job: Job) -> Way:
    """highdicom alone, with the least that it asks for."""
    import highdicom as hd
    from pydicom import dcmread
    from pydicom.sr.codedict import codes
    from pydicom.uid import ExplicitVRLittleEndian, RLELossless, generate_uid

    sources = [dcmread(file, stop_before_pixels=True) for file in sorted(Path(job["series"]).iterdir())]
    labels = np.load(job["mask"])
    syntax = ExplicitVRLittleEndian if job["kind"] == "binary" else RLELossless

    def write() -> None:
        algorithm = hd.AlgorithmIdentificationSequence("none", codes.cid7162.ArtificialIntelligence, "1")
        described = [
            hd.seg.SegmentDescription(
                number, f"structure {number}", codes.SCT.Organ, codes.SCT.Organ, "AUTOMATIC", algorithm
            )
            for number in range(1, job["structures"] + 1)
        ]
        seg = hd.seg.Segmentation(
            sources, labels.transpose(2, 1, 0), job["kind"].upper(), described, generate_uid(), 100, generate_uid(), 1,
            "none", "none", "1", "1", transfer_syntax_uid=syntax,
        )  # fmt: skip
        seg.save_as(job["file"])

    return _measured(job, write)


def totalsegmentator(job: Job) -> Way:
    """TotalSegmentator's own writer; it takes the mask as NIfTI orders it, and reads the series itself."""
    sys.path.append(job["rivals"])
    from totalsegmentator.dicom_io import save_mask_as_dicomseg

    # As its reader orders voxels: to the right, the front and the head. It turns the rows back.
    labels = np.ascontiguousarray(np.load(job["mask"])[:, ::-1])
    names = {number: f"structure {number}" for number in range(1, job["structures"] + 1)}

    def write() -> None:
        save_mask_as_dicomseg(labels, names, job["series"], Path(job["file"]), np.eye(4))

    return _measured(job, write)


def _card(structures: int) -> Card:
    labels = [{"name": "background", "value": 0}]
    labels += [{"name": f"structure {number}", "value": number} for number in range(1, structures + 1)]
    return Card.model_validate(
        {
            "schema_version": 1, "name": "made-up", "channels": ("CT",), "orientation": "RAS", "spacing": None,
            "intensity": {"rule": "none"}, "roi_size": (16, 16, 16), "labels": labels, "tiling": {},
            "input": {"dtype": "fp32", "padding": 0.0}, "engine": "none", "certificates": {},
            "output": {"kind": "logits", "dtype": "fp32", "scores": len(labels)},
            "provenance": {"network": "none", "weights_sha256": "", "onnx_sha256": ""},
        }
    )  # fmt: skip


def _passport() -> Passport:
    return Passport(
        voxtile="0", model="made-up", version="1", weights_sha256="", onnx_sha256="", engine="none", precision="fp32",
        tiling={}, scan_sha256="",
    )  # fmt: skip


def _measured(job: Job, write: Callable[[], object]) -> Way:
    file = Path(job["file"])

    def run() -> dict[str, Any]:
        file.unlink(missing_ok=True)
        started = time.perf_counter()
        write()
        seconds = time.perf_counter() - started
        told = {"seconds": seconds, "peak_rss_bytes": peak_rss_bytes(), "bytes": file.stat().st_size}
        return {**told, "voxels": _count(file)} if job["kind"] in ("binary", "labelmap") else told

    return run


def _count(file: Path) -> int:
    from pydicom import dcmread

    seg = dcmread(file)
    if seg.SegmentationType == "BINARY":
        bits = np.frombuffer(seg.PixelData, np.uint8)
        return int(np.unpackbits(bits, bitorder="little")[: seg.NumberOfFrames * seg.Rows * seg.Columns].sum())
    return int(np.count_nonzero(seg.pixel_array))
