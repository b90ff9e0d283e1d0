"""Segmentations of the phantom for pages about them: a head, and in it a lesion on the right."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.support.phantoms import card_of, phantom_volume
from voxtile.card import Card
from voxtile.io.volume import Volume
from voxtile.outputs.base import Result
from voxtile.outputs.page import pack
from voxtile.outputs.page.page import PAGE
from voxtile.outputs.passport import OtherModel, Passport, scan_sha256
from voxtile.outputs.report import Report, Seconds, certificate_summary, label_volumes

HEAD, LESION = "head", "lesion"

CERTIFICATE = {
    "sha256": "c0ffee" * 10 + "beef", "accepted": True, "precision": "fp32", "dice_min": 0.99987,
    "changed_fraction": 1.25e-5, "max_abs_error": 0.00123, "device": "cpu", "device_name": "Some CPU",
    "serves_on": "gpu", "unseen_labels": ("spleen",),
}  # fmt: skip


def labelled(volume: Volume, head: int = 1, lesion: int = 2) -> NDArray[Any]:
    """[i, j, k] the head and in it the lesion."""
    data = volume.data[0]
    dtype = np.uint8 if max(head, lesion) < 256 else np.uint16
    return np.where(data > 420, lesion, np.where(data > 150, head, 0)).astype(dtype)


def card_with(names: Mapping[int, str], **changes: Any) -> Card:
    """A card of these labels, by their values."""
    labels = [{"name": "background", "value": 0}, *({"name": name, "value": value} for value, name in names.items())]
    output = {"kind": "logits", "dtype": "fp32", "scores": len(labels)}
    return card_of(**({"labels": labels, "output": output, "certificates": {"none": CERTIFICATE}} | changes))


def result_of(
    volume: Volume | None = None,
    labels: NDArray[Any] | None = None,
    card: Card | None = None,
    show_patient: bool = False,
    **changes: Any,
) -> Result:
    """What a page is made from; `changes` replace fields of the report."""
    volume = volume or phantom_volume()
    labels = labelled(volume) if labels is None else labels
    card = card or card_with({1: HEAD, 2: LESION})
    return Result(volume, None, card, labels, None, report_of(volume, labels, card, **changes), show_patient)


def report_of(volume: Volume, labels: NDArray[Any], card: Card, **changes: Any) -> Report:
    """A report of a segmentation that nobody made."""
    provenance = {"weights_sha256": "abc", "onnx_sha256": "def"}
    other = OtherModel(role="first stage", model="coarse", version="7", engine="none", **provenance)
    passport = Passport(
        voxtile="1.2", model=card.name, version="3", engine="none", triton="2.62.0", tiling={"overlap": 0.25},
        scan_sha256=scan_sha256(volume), others=(other,), **provenance,
    )  # fmt: skip
    fields: dict[str, Any] = {
        "model": card.name, "version": "3", "shape": volume.shape, "tiles": 1, "seconds": Seconds(), "bytes_sent": 0,
        "bytes_received": 0, "peak_rss_bytes": 0, "retries": 0, "engine": "none", "servers": ["server:1"],
        "labels": label_volumes(labels, volume.voxel_ml, card), "certificate": certificate_summary(card),
        "grid": volume.shape, "tiling": {}, "changes": [], "passport": passport.model_dump(),
    }  # fmt: skip
    return Report(**(fields | changes))


def written(result: Result, path: Path) -> Path:
    """Writes the page, and packs NiiVue first where that has not been done."""
    pack.pack()
    PAGE.save(result, path)
    return path
