"""Says what made a mask: model, weights, certificate, engine, tiling, changes, and a digest of the scan.

Nothing in it names a patient, a file or a server. Knows nothing of formats.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from voxtile.io.volume import Volume
from voxtile.outputs.report import Report
from voxtile.triton.types import ServedModel


class Passport(BaseModel):
    """What made a mask. Two masks of one passport are the same mask, up to the rounding of other devices.

    Attributes:
        voxtile: the version of the client.
        model: the model's public name.
        version: the version of the entry that answered.
        weights_sha256: the digest of the model's weights.
        onnx_sha256: the digest of the graph that its engines were built from.
        engine: the engine behind the public name.
        precision: what the engine computes in; empty where no certificate says it.
        certificate_sha256: the digest of the engine's certificate; empty without one.
        certified: whether the engine met all limits.
        triton: the server's version; empty where it is not known.
        tiling: how the scan was cut and stitched.
        changes: what was asked for that may change the result, in words.
        scan_sha256: the digest of the scan's voxels and of their place.
        labels_sha256: the digest of the mask's labels; empty in a format that stores them otherwise.
    """

    model_config = ConfigDict(frozen=True)

    voxtile: str
    model: str
    version: str
    weights_sha256: str
    onnx_sha256: str
    engine: str
    precision: str = ""
    certificate_sha256: str = ""
    certified: bool = False
    triton: str = ""
    tiling: dict[str, Any]
    changes: tuple[str, ...] = ()
    scan_sha256: str
    labels_sha256: str = ""


def passport_of(
    report: Report, model: ServedModel, volume: Volume, client: str, labels: NDArray[Any] | None = None
) -> Passport:
    """The passport of the mask that `report` is about.

    Args:
        report: what was done.
        model: the model as it was served.
        volume: the scan.
        client: the version of the client.
        labels: [i, j, k] the mask, for a file that holds it as it is.
    """
    card = model.card
    certificate = card.certificates.get(card.engine)
    return Passport(
        voxtile=client,
        model=card.name,
        version=report.version,
        weights_sha256=card.provenance.weights_sha256,
        onnx_sha256=card.provenance.onnx_sha256,
        engine=report.engine,
        precision=certificate.precision if certificate else "",
        certificate_sha256=certificate.sha256 if certificate else "",
        certified=certificate is not None and certificate.accepted,
        triton=model.server,
        tiling=report.tiling,
        changes=tuple(report.changes),
        scan_sha256=scan_sha256(volume),
        labels_sha256="" if labels is None else labels_sha256(labels),
    )


def labels_sha256(labels: NDArray[Any]) -> str:
    """The digest of labels [i, j, k], whatever type they are stored in."""
    digest = hashlib.sha256(repr(labels.shape).encode())
    for k in range(labels.shape[2]):
        digest.update(np.ascontiguousarray(labels[:, :, k].T, "<u2").data)
    return digest.hexdigest()


def scan_sha256(volume: Volume) -> str:
    """The digest of a scan's voxels, of their type, and of the affine that places them; not of its header."""
    digest = hashlib.sha256(repr((volume.data.shape, volume.data.dtype.str)).encode())
    digest.update(np.ascontiguousarray(volume.affine, np.float64).tobytes())
    for channel in volume.data:
        for k in range(channel.shape[2]):
            digest.update(np.ascontiguousarray(channel[:, :, k].T).data)
    return digest.hexdigest()
