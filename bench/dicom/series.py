"""A made-up CT as DICOM: single frames, uncompressed and compressed, and one object of all frames; and its masks.

Knows nothing of what is measured.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, generate_uid

from ..scans import CT_SPACING, Shape, ct_labels, ct_values

SYNTAXES = {"JPEG-LS": JPEGLSLossless, "JPEG 2000": JPEG2000Lossless}
ENHANCED = "one object"
VARIANTS = ("uncompressed", *SYNTAXES, ENHANCED)
PARTS, BANDS = 5, 25
"""Parts of each organ, so that 23 organs are enough for 104 structures; they take turns in so many bands along z."""


def series(folder: Path, shape: Shape, variant: str) -> Path:
    """Returns a folder with the CT in one of `VARIANTS`, made once; its voxels [x, y, z] are those of `ct_values`."""

    def make(partial: Path) -> None:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        objects = _slices(ct_values(shape))
        for number, one in enumerate([_joined(objects)] if variant == ENHANCED else objects):
            if variant in SYNTAXES:
                one.compress(SYNTAXES[variant], generate_instance_uid=False)
            one.save_as(partial / f"{number:04d}.dcm", enforce_file_format=True)

    return _once(folder / f"ct-{'x'.join(map(str, shape))}-{variant.replace(' ', '-')}", make)


def mask(shape: Shape, structures: int) -> NDArray[np.uint8]:
    """Returns labels [x, y, z]: 0, and 1 to `structures` in parts of organs."""
    organs = ct_labels(shape).astype(np.int64)
    part = np.arange(shape[2]) * BANDS // shape[2] % PARTS
    number = 1 + ((organs - 2) * PARTS + part) % structures
    return np.where(organs > 1, number, 0).astype(np.uint8)


def _once(path: Path, make: Callable[[Path], None]) -> Path:
    if not path.exists():
        partial = path.with_name(f"partial-{path.name}")
        make(partial)
        partial.rename(path)
    return path


def _slices(voxels: NDArray[np.int16]) -> list[FileDataset]:
    shared = {
        "Modality": "CT", "SOPClassUID": CTImageStorage, "StudyInstanceUID": generate_uid(),
        "SeriesInstanceUID": generate_uid(), "FrameOfReferenceUID": generate_uid(), "PatientID": "made up",
        "PatientName": "Made^Up", "PatientBirthDate": "", "PatientSex": "", "StudyDate": "20260101",
        "StudyTime": "000000", "AcquisitionDate": "20260101", "AcquisitionTime": "000000", "ContentDate": "20260101",
        "ContentTime": "000000", "StudyID": "1", "AccessionNumber": "", "ReferringPhysicianName": "",
        "SeriesNumber": 1, "Manufacturer": "none", "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "PositionReferenceIndicator": "", "SliceThickness": CT_SPACING[2], "KVP": 120,
        "PixelSpacing": [CT_SPACING[1], CT_SPACING[0]], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "RescaleSlope": 1, "RescaleIntercept": 0, "RescaleType": "HU", "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2", "Columns": voxels.shape[0], "Rows": voxels.shape[1],
        "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15, "PixelRepresentation": 1,
    }  # fmt: skip
    return [_slice(np.ascontiguousarray(voxels[..., k].T), k, shared) for k in range(voxels.shape[2])]


def _slice(plane: NDArray[np.int16], k: int, shared: dict[str, Any]) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    one = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    for keyword, value in shared.items():
        setattr(one, keyword, value)
    one.SOPInstanceUID, one.InstanceNumber = meta.MediaStorageSOPInstanceUID, k + 1
    one.ImagePositionPatient = [0, 0, k * CT_SPACING[2]]
    one.PixelData = plane.tobytes()
    one["PixelData"].VR = "OW"
    return one


def _joined(objects: list[FileDataset]) -> Any:
    """One object with the frames of all; highdicom writes the legacy kind, which says as much of each frame."""
    return hd.legacy.LegacyConvertedEnhancedCTImage(objects, generate_uid(), 1, generate_uid(), 1)
