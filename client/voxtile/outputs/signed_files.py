"""Reads the passport of a mask from the file that holds it, and says whether the mask is still the one that was signed.

Knows nothing of servers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from voxtile.errors import InputError
from voxtile.extras import require
from voxtile.io.dicom.files import is_dicom
from voxtile.io.note import note_of
from voxtile.outputs.passport import Passport, labels_sha256

LARGEST_TEXT = 1 << 24
"""Bytes of a report that are read; one has some thousands."""


@dataclass(frozen=True)
class Signed:
    """What a file says of its mask.

    Attributes:
        passport: what made the mask.
        unchanged: whether the mask in the file is the one that was signed; None where the file holds no digest or no
            mask.
    """

    passport: Passport
    unchanged: bool | None = None


def read_signed(path: Path) -> Signed:
    """Reads a mask of NIfTI, an object of DICOM that Voxtile wrote, or a report.

    Raises:
        InputError: it cannot be read, or says nothing of what made it.
        MissingExtraError: DICOM needs what is not installed.
    """
    try:
        with path.open("rb") as file:
            first = file.read(264)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    if is_dicom(first):
        return Signed(_passport(_dicom_text(path), path))
    if first.lstrip()[:1] == b"{":
        return Signed(_passport(_report_text(path), path))
    return _of_image(path)


def _of_image(path: Path) -> Signed:
    import nibabel

    try:
        image: Any = nibabel.load(path)
        text = note_of(image)
        labels = np.asanyarray(image.dataobj) if text else None
    except Exception as error:  # whatever nibabel meets in a file that is damaged or no image
        raise InputError(
            f"{path}: expected a mask of NIfTI, an object of DICOM or a report, found what cannot be read as one "
            f"({type(error).__name__})"
        ) from None
    passport = _passport(text, path)
    if labels is None or not passport.labels_sha256 or labels.ndim not in (2, 3) or labels.dtype.kind not in "iu":
        return Signed(passport)
    return Signed(passport, labels_sha256(labels.reshape((*labels.shape, 1)[:3])) == passport.labels_sha256)


def _dicom_text(path: Path) -> str:
    require("pydicom", "dicom", "an object of DICOM")
    import pydicom

    from voxtile.io.dicom.quiet import quietly

    with quietly():
        try:
            dataset = pydicom.dcmread(path, stop_before_pixels=True, force=True)
            items = list(dataset.get("ContributingEquipmentSequence", ()))
            texts = [str(item.get("ContributionDescription", "")) for item in items]
        except Exception as error:  # whatever pydicom meets in a damaged object
            raise InputError(
                f"{path}: expected an object of DICOM, found a damaged one ({type(error).__name__})"
            ) from None
    return next((text for text in texts if text.startswith("{")), "")


def _report_text(path: Path) -> str:
    with path.open("rb") as file:
        content = file.read(LARGEST_TEXT)
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        raise InputError(f"{path}: expected a report (JSON), found other text") from None
    return json.dumps(found.get("passport") or found) if isinstance(found, dict) else ""


def _passport(text: str, path: Path) -> Passport:
    try:
        fields = json.loads(text)
        if isinstance(fields, dict) and isinstance(fields.get("tiling"), str):
            fields["tiling"] = {}  # DICOM's texts are short; the tiling then stands in the algorithm's parameters
        return Passport.model_validate(fields)
    except (ValidationError, ValueError, RecursionError):
        raise InputError(
            f"{path}: expected a mask that says what made it, found none of it; masks of NIfTI, objects of DICOM and "
            "reports (--json) of Voxtile say it, unless another program wrote them anew"
        ) from None
