"""Writes into an object of DICOM who made it and how: equipment, description, passport.

Knows nothing of what the object says.
"""

from __future__ import annotations

import datetime
import json
from typing import Any, Literal

from voxtile.outputs.dicom.finding import Finding
from voxtile.outputs.dicom.frames import OPTIONAL, UTF8
from voxtile.outputs.dicom.items import code_item
from voxtile.outputs.dicom.texts import SHORT_TEXT, fitted
from voxtile.outputs.passport import Passport, UsedModel

MANUFACTURER = "Voxtile"

PROCESSING_EQUIPMENT = ("109102", "DCM", "Processing Equipment")
"""Purpose of a contributing equipment (DICOM's context group 7005), as IHE's profile AI Results asks for it."""

Kind = Literal["seg", "sr", "sc", "rtstruct"]

KINDS: tuple[Kind, ...] = ("seg", "sr", "sc", "rtstruct")
"""The kinds of objects, the SEG first: the others are made of it, and it must be safe before them."""

FIRST_SERIES_NUMBER = 9001
"""Above the numbers that scanners give, so that what is written stands behind the scan in a list."""


def serial_number(model: UsedModel) -> str:
    """What tells one model from another of the same name: the digest of its weights."""
    return fitted(model.weights_sha256) or "none"


def series_number(kind: Kind) -> int:
    """The number of the series of a kind of object."""
    return FIRST_SERIES_NUMBER + KINDS.index(kind)


def series_description(finding: Finding, what: str) -> str:
    """What a viewer lists a series as."""
    return fitted(f"{fitted(finding.card.name, 40)} {what}")


def algorithm_parameters(passport: Passport) -> dict[str, str]:
    """What of the passport says how an algorithm was run, for its identification."""
    fields = passport.model_dump(exclude={"model", "version", "tiling", "changes", "others", "student_of"})
    fields |= {f"{one.role} {one.model}": one.weights_sha256 for one in passport.others}
    fields |= {f"tiling.{key}": value for key, value in passport.tiling.items()}
    fields["changes"] = "; ".join(passport.changes)
    if (teacher := passport.student_of) is not None:
        fields["student_of"] = f"{teacher.teacher}, weights {teacher.weights_sha256}, {teacher.agreement}"
    return {key: fitted(str(value), SHORT_TEXT) for key, value in fields.items() if value not in ("", None)}


def sign(dataset: Any, finding: Finding, what: str) -> None:
    """Writes the maker, the passport and a description into an object.

    Args:
        dataset: the object.
        finding: what it is about.
        what: what the series is listed as, behind the model's name.
    """
    passport = finding.passport
    dataset.SpecificCharacterSet = UTF8
    dataset.SeriesDescription = series_description(finding, what)
    dataset.Manufacturer = MANUFACTURER
    dataset.ManufacturerModelName = fitted(finding.card.name)
    dataset.SoftwareVersions = [fitted(f"voxtile {passport.voxtile}"), fitted(f"model version {passport.version}")]
    dataset.DeviceSerialNumber = serial_number(passport)
    for keyword in OPTIONAL:
        if keyword in finding.frames.first and keyword not in dataset:
            dataset[keyword] = finding.frames.first[keyword]
    dataset.ContributingEquipmentSequence = [
        _equipment(passport, passport, passport_text(passport)),
        *(_equipment(one, passport, one.model_dump_json(exclude_defaults=True)) for one in passport.others),
    ]


def passport_text(passport: Passport) -> str:
    """The passport as JSON of at most 1024 bytes; without tiling and changes where these are too long.

    The models behind the one that was asked for have items of their own.
    """
    fields = passport.model_dump(exclude_defaults=True, exclude={"others"})
    for shortened in ({}, {"tiling": "in the algorithm's parameters"}, {"changes": ["too many to be named here"]}):
        fields |= shortened
        text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False)
        if len(text.encode()) <= SHORT_TEXT:
            break
    return text if len(text.encode()) <= SHORT_TEXT else json.dumps({"model": fitted(passport.model)})


def _equipment(model: UsedModel, passport: Passport, said: str) -> Any:
    """The item of one model, which `said` describes."""
    from pydicom.dataset import Dataset

    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [code_item(*PROCESSING_EQUIPMENT)]
    item.Manufacturer = MANUFACTURER
    item.ManufacturerModelName = fitted(model.model)
    item.SoftwareVersions = [fitted(f"voxtile {passport.voxtile}"), fitted(f"model version {model.version}")]
    item.DeviceSerialNumber = serial_number(model)
    item.ContributionDateTime = datetime.datetime.now().strftime("%Y%m%d%H%M%S")
    item.ContributionDescription = said
    return item
