"""Makes DICOM series of an array that an affine places, in the many ways in which scanners and archives store them."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def slices(
    voxels: NDArray[Any],
    affine: NDArray[np.float64],
    modality: str = "CT",
    slope: float | Sequence[float] = 1.0,
    intercept: float = 0.0,
    **tags: Any,
) -> list[FileDataset]:
    """One object a slice, in the order of k.

    Args:
        voxels: [i, j, k] int16 or uint16, as stored: values are voxels · slope + intercept.
        affine: [4, 4] voxel to RAS millimetres. Its third axis may lean: a tilted gantry.
        modality: "CT" or "MR".
        slope: one number, or one for each slice.
        intercept: one number.
        **tags: what else each object says, by keyword of DICOM; None for an empty tag.
    """
    lps = TO_LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    along_i, along_j = lps[:3, 0] / spacing[0], lps[:3, 1] / spacing[1]
    shared = {
        "StudyInstanceUID": generate_uid(),
        "SeriesInstanceUID": generate_uid(),
        "FrameOfReferenceUID": generate_uid(),
        "PatientName": "Phantom^Egg",
        "PatientID": "P1",
        "PatientBirthDate": "19700101",
        "PatientSex": "O",
        "StudyDate": "20200102",
        "StudyTime": "030405",
        "StudyID": "1",
        "AccessionNumber": "A1",
        "ReferringPhysicianName": "",
        "SeriesNumber": 2,
        "SeriesDescription": "phantom",
        "Modality": modality,
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "PositionReferenceIndicator": "",
        "SliceThickness": float(spacing[2]),
        **tags,
    }
    slopes = [slope] * voxels.shape[2] if isinstance(slope, (int, float)) else list(slope)
    made = []
    for k in range(voxels.shape[2]):
        one = _empty(CTImageStorage if modality == "CT" else MRImageStorage)
        for name, value in shared.items():
            setattr(one, name, value)
        one.InstanceNumber = k + 1
        one.ImagePositionPatient = _numbers(lps[:3, :3] @ (0, 0, k) + lps[:3, 3])
        one.ImageOrientationPatient = _numbers((*along_i, *along_j))
        one.PixelSpacing = _numbers((spacing[1], spacing[0]))  # between rows, between columns
        one.RescaleSlope, one.RescaleIntercept = slopes[k], intercept
        set_pixels(one, voxels[:, :, k])
        made.append(one)
    return made


def set_pixels(one: Dataset, plane: NDArray[Any]) -> None:
    """Puts `plane` [i, j] of 16 bit integers into an object."""
    one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
    one.Rows, one.Columns = plane.shape[1], plane.shape[0]
    one.BitsAllocated = one.BitsStored = 16
    one.HighBit, one.PixelRepresentation = 15, int(plane.dtype.kind == "i")
    one.PixelData = np.ascontiguousarray(plane.T).astype(plane.dtype.newbyteorder("<")).tobytes()
    one["PixelData"].VR = "OW"


def saved(made: Iterable[FileDataset], folder: Path, name: Callable[[int], str] = "{:04d}.dcm".format) -> Path:
    """Writes objects into `folder` under names by their number; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(made):
        one.save_as(folder / name(number), enforce_file_format=True)
    return folder


def _empty(sop_class: str) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    one = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    one.SOPClassUID, one.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    one.InstanceCreationDate = datetime.date(2020, 1, 2).strftime("%Y%m%d")
    return one


def _numbers(values: Iterable[float]) -> list[str]:
    """Decimal strings of at most 16 characters, as the standard allows."""
    return [f"{float(value):.10g}"[:16] for value in values]
