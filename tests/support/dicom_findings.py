"""Segmentations of DICOM series made for tests, and what independent programs read of the objects about them."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.uid import MRImageStorage, generate_uid

from tests.support.phantoms import affine_of, card_of, header_of, sampled
from voxtile.card import Card
from voxtile.io.dicom.source import Source
from voxtile.io.volume import Volume
from voxtile.outputs.dicom.finding import Finding, finding_of
from voxtile.outputs.passport import Passport, mask_sha256

SHAPE = (24, 31, 9)
SPACING = (2.0, 1.5, 4.0)
CODES = "LPS"
"""Axes as a plain axial series has them: columns to the left, rows to the back, slices upwards."""


def scan(
    shape: tuple[int, int, int] = SHAPE, codes: str = CODES, **geometry: Any
) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    """[i, j, k] the asymmetric anatomy as int16, and its affine."""
    affine = affine_of(shape, geometry.pop("spacing", SPACING), codes, **geometry)
    return np.rint(sampled(shape, affine)).astype(np.int16), affine


def labels_of(voxels: NDArray[np.int16]) -> NDArray[np.uint8]:
    """[i, j, k] 1 in the head, 2 in its bright parts, 3 in one block at the first voxels, 4 nowhere."""
    labels = np.asfortranarray((voxels > 150).astype(np.uint8) + (voxels > 500))
    labels[:3, :5, 1:3] = 3
    return labels


def card_for(names: Sequence[Any] = ("liver", "kidney_left", "kidney right", "something odd"), **changes: Any) -> Card:
    """A card whose labels after the background have these names, or are these fields."""
    labels = [{"name": "background", "value": 0}]
    labels += [{"name": one, "value": n} if isinstance(one, str) else one for n, one in enumerate(names, 1)]
    output = {"kind": "logits", "dtype": "fp32", "scores": len(labels)}
    return card_of(labels=labels, output=output, **changes)


def passport(**changes: Any) -> Passport:
    """A passport."""
    fields: dict[str, Any] = {
        "voxtile": "0", "model": "phantom", "version": "3", "weights_sha256": "ab" * 32, "onnx_sha256": "cd" * 32,
        "engine": "onnxruntime", "precision": "fp32", "tiling": {"overlap": 0.5}, "scan_sha256": "ef" * 32,
    }  # fmt: skip
    return Passport.model_validate(fields | changes)


def source_of(datasets: Sequence[Any]) -> Source:
    """Single-frame objects, in the order of their planes, as the scan they are."""
    return Source(tuple(datasets), tuple((number, 1) for number in range(len(datasets))))


def volume_of(voxels: NDArray[Any], affine: NDArray[np.float64], source: Source) -> Volume:
    """A scan that was read from DICOM."""
    return Volume(voxels[None], affine, header_of(voxels.shape, affine), ("scan",), native=source)


def finding(
    datasets: Sequence[Any] | Source,
    voxels: NDArray[Any],
    affine: NDArray[np.float64],
    labels: NDArray[Any] | None = None,
    card: Card | None = None,
    **changes: Any,
) -> Finding:
    """A segmentation of a series; `changes` are those of its passport."""
    source = datasets if isinstance(datasets, Source) else source_of(datasets)
    mask = labels_of(voxels) if labels is None else labels
    volume = volume_of(voxels, affine, source)
    signed = passport(**{"mask_sha256": mask_sha256(mask, volume.header), **changes})
    return finding_of(volume, mask, card or card_for(), signed)


def dciodvfy(path: Path) -> list[str]:
    """The errors that dicom3tools finds in an object."""
    done = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True, check=False)
    return [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]


def enhanced(datasets: Sequence[Any]) -> Any:
    """One object of many frames, in an order of its own, of a series of single frames."""
    for one in datasets:
        for keyword in ("RescaleSlope", "RescaleIntercept"):
            if keyword in one:
                delattr(one, keyword)
        one.SOPClassUID, one.Modality = MRImageStorage, "MR"
        one.ImageType = ["ORIGINAL", "PRIMARY", "M", "NONE"]
        one.AcquisitionDate = one.ContentDate = "20200102"
        one.AcquisitionTime = one.ContentTime = "030405"
        one.WindowCenter, one.WindowWidth = 500, 1000
    return hd.legacy.LegacyConvertedEnhancedMRImage(datasets, generate_uid(), 1, generate_uid(), 1)


def planes_of(whole: Any, datasets: Sequence[Any]) -> tuple[tuple[int, int], ...]:
    """Where the frames of a series of single frames lie in the one object made of them."""
    number = {
        tuple(map(float, frame.PlanePositionSequence[0].ImagePositionPatient)): place
        for place, frame in enumerate(whole.PerFrameFunctionalGroupsSequence, 1)
    }
    return tuple((0, number[tuple(map(float, one.ImagePositionPatient))]) for one in datasets)


def numbers_by_frame(seg: Path, folder: Path) -> NDArray[Any]:
    """[i, j, k] what highdicom reads of a SEG for the objects of a folder, upwards along the slices' normal."""
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in folder.iterdir()]
    across = np.cross(headers[0].ImageOrientationPatient[:3], headers[0].ImageOrientationPatient[3:])
    uids = [one.SOPInstanceUID for one in sorted(headers, key=lambda one: np.dot(one.ImagePositionPatient, across))]
    read = hd.seg.segread(seg).get_pixels_by_source_instance(
        uids, combine_segments=True, assert_missing_frames_are_empty=True
    )
    return np.asarray(read.transpose(2, 1, 0))


OWN_CODE = {"value": "T-1", "meaning": "Own thing", "scheme": "99MINE", "laterality": "left", "category": "object"}
"""A code that no table has."""
