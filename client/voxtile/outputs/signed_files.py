"""Reads the passport of a mask from the file that holds it, and says whether the mask is still the one that was signed.

Knows nothing of servers.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from voxtile.errors import InputError, MemoryLimitError
from voxtile.extras import require
from voxtile.io.dicom.objects.files import File, is_dicom
from voxtile.io.formats.base import Content
from voxtile.io.formats.nifti import NIFTI, NIFTI1_SIZE, NIFTI2_SIZE, kind_of, layout_of, parse_header
from voxtile.io.formats.not_scans import what_it_is
from voxtile.io.note import notes_in
from voxtile.io.plain_file import check_plain_file
from voxtile.machine.memory import machine_bytes
from voxtile.outputs.passport import Passport, mask_sha256

LARGEST_TEXT = 1 << 24
"""Bytes that are looked at for a passport; one has some thousands."""

PAGE = "an HTML page"
"""What a report page is, in the words for files that are no scan."""

ROLE = "role"
"""The field that a model behind the one that was asked for has, and a passport has not."""


@dataclass(frozen=True)
class Signed:
    """What a file says of its mask.

    Attributes:
        passport: what made the mask.
        unchanged: whether the mask in the file is the one that was signed; None where that cannot be said.
        unknown: why it cannot be said, in words; empty where it can.
    """

    passport: Passport
    unchanged: bool | None = None
    unknown: str = ""


def read_signed(path: Path) -> Signed:
    """Reads a mask of NIfTI, an object of DICOM that Voxtile wrote, or a report.

    Raises:
        InputError: it cannot be read, or says nothing of what made it.
        MemoryLimitError: it claims more voxels than this machine has room for.
        MissingExtraError: DICOM needs what is not installed.
    """
    check_plain_file(path, "a mask of NIfTI, an object of DICOM or a report")
    content = Content.of_file(path)
    if content.packing is None and is_dicom(content.first):
        return Signed(_passport_in(_dicom_texts(path), path), unknown="an object of DICOM holds no digest of it")
    if content.first.lstrip()[:1] == b"{":
        return Signed(_passport(_report(content), path), unknown="a report holds no mask")
    kind = kind_of(content.first)
    if kind is None or not kind.single:
        found = what_it_is(content.first, path.name)
        if found.startswith(PAGE):
            found = f"{PAGE}, such as --page writes for people; give the mask that it shows, or the report of --json"
        raise InputError(
            f"{path}: expected a mask of NIfTI (.nii, .nii.gz), an object of DICOM or a report, found {found}"
        )
    return _of_nifti(content, path)


def _of_nifti(content: Content, path: Path) -> Signed:
    kind = kind_of(content.first)
    assert kind is not None, "the format was recognised by this"
    header, _ = parse_header(content)
    offset = layout_of(header, content.name).offset
    with content.stream() as stream:
        before = stream.read(min(offset, LARGEST_TEXT))
    notes = notes_in(before[NIFTI1_SIZE if kind.version == 1 else NIFTI2_SIZE :], kind.order)
    passport = _passport_in(notes, path)
    if not passport.mask_sha256:
        return Signed(passport, unknown="the passport holds no digest of it")
    stored = NIFTI.read(content, _check_fits(content))
    found = mask_sha256(stored.raw, stored.header, stored.slope, stored.inter)
    return Signed(passport, found == passport.mask_sha256)


def _check_fits(content: Content) -> Any:
    def admit(shape: tuple[int, ...], dtype: np.dtype[Any], _scaled: bool) -> None:
        needed = math.prod(shape) * dtype.itemsize
        if needed > machine_bytes():
            raise MemoryLimitError(f"{content.name}: its {needed:,} bytes do not fit into this machine's memory")

    return admit


def _dicom_texts(path: Path) -> list[str]:
    require("pydicom", "dicom", "an object of DICOM")
    from voxtile.io.dicom.objects.headers import items_of, read_header, text_of
    from voxtile.io.dicom.objects.quiet import quietly

    with quietly():
        header = read_header(File(str(path), path=path))
        items = items_of(header, "ContributingEquipmentSequence", str(path))
        return [text_of(item, "ContributionDescription") for item in items]


def _report(content: Content) -> Any:
    with content.stream() as stream:
        text = stream.read(LARGEST_TEXT)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(f"{content.name}: expected a report (JSON), found other text") from None
    return found.get("passport") or found


def _passport_in(texts: list[str], path: Path) -> Passport:
    """The one passport among texts, with the models that stand in texts of their own."""
    found = [one for one in map(_object, texts) if one is not None]
    own = [one for one in found if ROLE not in one]
    if len(own) > 1:
        raise InputError(f"{path}: expected one passport, found {len(own)}: nobody knows which of them is the mask's")
    others = [one for one in found if ROLE in one]
    return _passport({**own[0], **({"others": others} if others else {})} if own else None, path)


def _object(text: str) -> dict[str, Any] | None:
    """The object that a text of JSON holds; None for another text."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _passport(fields: Any, path: Path) -> Passport:
    if isinstance(fields, dict) and isinstance(fields.get("tiling"), str):
        fields = {**fields, "tiling": {}}  # DICOM's texts are short; the tiling stands in the algorithm's parameters
    try:
        return Passport.model_validate(fields)
    except ValidationError:
        raise InputError(
            f"{path}: expected a mask that says what made it, found none of it; masks of NIfTI, objects of DICOM and "
            "reports (--json) of Voxtile say it, unless another program wrote them anew"
        ) from None
