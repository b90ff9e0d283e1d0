"""Says what made a mask: models, weights, certificates, engines, tiling, changes, and digests of scan and mask.

Nothing in it names a patient, a file or a server. Knows nothing of files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from voxtile.card import Card, agreement_in_words
from voxtile.io.volume import Volume
from voxtile.io.writing import GEOMETRY_FIELDS
from voxtile.outputs.report import Report
from voxtile.triton.types import ServedModel

NO_METHOD = {"schema_version", "name", "title", "version", "engine", "certificates", "provenance"}
"""Fields of a card that say nothing of what becomes of a scan; the passport has what counts of them by itself."""


class Teacher(BaseModel):
    """The teacher of a network that was distilled, and how far the two agree.

    Attributes:
        teacher: its name.
        weights_sha256: the digest of its weights.
        dice_min: the lowest Dice between student and teacher of any label of any scan that was held out.
        scans: the number of these scans.
        block: whether the one scan was only a part that was held out.
        unseen_labels: the number of labels that these scans hardly show; the card names them.
    """

    model_config = ConfigDict(frozen=True)

    teacher: str
    weights_sha256: str
    dice_min: float
    scans: int
    block: bool = False
    unseen_labels: int = 0

    @property
    def agreement(self) -> str:
        """How far the two agree, in words."""
        plural = "" if self.unseen_labels == 1 else "s"
        unseen = f"; {self.unseen_labels} label{plural} not seen there" if self.unseen_labels else ""
        return agreement_in_words(self.dice_min, self.scans, self.block) + unseen


class UsedModel(BaseModel):
    """One model that shaped a mask.

    Attributes:
        model: its public name.
        version: the version of the entry that answered.
        weights_sha256: the digest of its weights.
        onnx_sha256: the digest of the graph that its engines were built from.
        method_sha256: the digest of what its card says of how a scan is prepared, cut, stitched and labelled.
        engine: the engine behind the public name.
        precision: what the engine computes in; empty where no certificate says it.
        certificate_sha256: the digest of the engine's certificate; empty without one.
        certified: whether the engine met all limits.
        student_of: the teacher of a network that was distilled; None for any other.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    version: str
    weights_sha256: str
    onnx_sha256: str
    method_sha256: str = ""
    engine: str
    precision: str = ""
    certificate_sha256: str = ""
    certified: bool = False
    student_of: Teacher | None = None


class OtherModel(UsedModel):
    """A model behind the one that was asked for.

    Attributes:
        role: what it is to the mask: `first stage`, `crop`, or `part` of a set.
    """

    role: str


class Passport(UsedModel):
    """What made a mask. Two masks of one passport are the same mask, up to the rounding of other devices.

    Attributes:
        voxtile: the version of the client.
        triton: the server's version; empty where it is not known.
        tiling: how the scan was cut and stitched.
        changes: what was asked for that may change the result, in words.
        scan_sha256: the digest of the scan's voxels and of their place.
        mask_sha256: the digest of the mask's labels and of their place; empty in a format that stores them otherwise.
        others: the models behind the one that was asked for.
    """

    voxtile: str
    triton: str = ""
    tiling: dict[str, Any]
    changes: tuple[str, ...] = ()
    scan_sha256: str
    mask_sha256: str = ""
    others: tuple[OtherModel, ...] = ()


def passport_of(
    report: Report,
    model: ServedModel,
    volume: Volume,
    client: str,
    mask: Any,
    others: Sequence[tuple[str, ServedModel]] = (),
) -> Passport:
    """The passport of the mask that `report` is about.

    Args:
        report: what was done.
        model: the model as it was served.
        volume: the scan.
        client: the version of the client.
        mask: a nibabel image of the labels.
        others: the models behind it as they were served, each with its role.
    """
    used = _used(model) | {"version": report.version, "engine": report.engine}
    return Passport(
        **used,
        voxtile=client,
        triton=model.server,
        tiling=report.tiling,
        changes=tuple(report.changes),
        scan_sha256=scan_sha256(volume),
        mask_sha256=mask_sha256(np.asanyarray(mask.dataobj), mask.header),
        others=tuple(OtherModel(**_used(other), role=role) for role, other in others),
    )


def used_model(passport: Passport) -> UsedModel:
    """The model of a passport, without what else the passport says."""
    return UsedModel(**passport.model_dump(include=set(UsedModel.model_fields)))


def _used(model: ServedModel) -> dict[str, Any]:
    """The fields of a `UsedModel`."""
    card = model.card
    certificate = card.certificates.get(card.engine)
    return {
        "model": card.name,
        "version": model.version,
        "weights_sha256": card.provenance.weights_sha256,
        "onnx_sha256": card.provenance.onnx_sha256,
        "method_sha256": method_sha256(card),
        "engine": card.engine,
        "precision": certificate.precision if certificate else "",
        "certificate_sha256": certificate.sha256 if certificate else "",
        "certified": certificate is not None and certificate.accepted,
        "student_of": teacher_of(card),
    }


def teacher_of(card: Card) -> Teacher | None:
    """What a card says of the network's teacher, in short."""
    student = card.provenance.student_of
    if student is None:
        return None
    return Teacher(**student.model_dump(exclude={"unseen_labels"}), unseen_labels=len(student.unseen_labels))


def method_sha256(card: Card) -> str:
    """The digest of what a card says of how a scan is prepared, cut, stitched and labelled."""
    fields = card.model_dump(mode="json", exclude=NO_METHOD, exclude_none=True)  # a field of a later client is None
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def mask_sha256(labels: NDArray[Any], header: Any, slope: float | None = None, inter: float | None = None) -> str:
    """The digest of a mask's labels and of where they lie, whatever type they are stored in.

    All that NIfTI says of the place counts, also what not every program looks at: qform, sform, their codes, units.

    Args:
        labels: [i, j, k] or [i, j], or with further axes of one element; label = stored · slope + inter.
        header: the nibabel header of NIfTI-1 or NIfTI-2.
        slope: None for 1.
        inter: None for 0.

    Returns:
        The digest; empty for what no mask holds: values that are no whole numbers from 0 to 65535, or several volumes.
    """
    if any(size != 1 for size in labels.shape[3:]) or labels.ndim < 2 or labels.dtype.kind not in "biuf":
        return ""
    shape = (*labels.shape, 1)[:3]
    digest = hashlib.sha256(repr(shape).encode())
    digest.update(_geometry(header))
    volume = labels.reshape(shape, order="F" if labels.flags.f_contiguous else "C")
    for k in range(shape[2]):
        plane = volume[:, :, k]
        if slope is not None or inter is not None:
            plane = plane * (1.0 if slope is None else slope) + (0.0 if inter is None else inter)
        with np.errstate(invalid="ignore"):  # of a number that no label can be, which the comparison finds
            stored = plane.astype("<u2")
        if not np.array_equal(stored, plane):
            return ""
        digest.update(np.ascontiguousarray(stored.T).data)
    return digest.hexdigest()


def _geometry(header: Any) -> bytes:
    """What a header of either version of NIfTI says of the place, in one form."""
    numbers = np.concatenate([np.atleast_1d(header[field]).astype("<f8") for field in GEOMETRY_FIELDS])
    sizes = np.asarray(header["pixdim"][:4], "<f8").copy()
    sizes[0] = sizes[0] or 1.0  # as nibabel reads a handedness that is not said
    return (np.concatenate([numbers, sizes]) + 0.0).tobytes()  # minus zero is zero


def scan_sha256(volume: Volume) -> str:
    """The digest of a scan's voxels, of their type, and of the affine that places them; not of its header."""
    digest = hashlib.sha256(repr((volume.data.shape, volume.data.dtype.str)).encode())
    digest.update(np.ascontiguousarray(volume.affine, np.float64).tobytes())
    for channel in volume.data:
        for k in range(channel.shape[2]):
            digest.update(np.ascontiguousarray(channel[:, :, k].T).data)
    return digest.hexdigest()
