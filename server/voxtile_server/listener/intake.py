"""Takes objects into the spool, and knows the series in it. Knows nothing of associations but when they end.

An answer of success means that the object is on the disk, or that no rule wants it.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    EnhancedPETImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    LegacyConvertedEnhancedPETImageStorage,
    MRImageStorage,
    NuclearMedicineImageStorage,
    PositronEmissionTomographyImageStorage,
    XRay3DAngiographicImageStorage,
    XRay3DCraniofacialImageStorage,
)

from voxtile.errors import VoxtileError
from voxtile.io.dicom.objects.files import File
from voxtile.io.dicom.objects.headers import read_header, text_of
from voxtile.io.dicom.objects.quiet import quietly
from voxtile_server.listener.audit import Audit
from voxtile_server.listener.rules import Facts, fits
from voxtile_server.listener.series import Association, Series
from voxtile_server.listener.settings import MIB, Settings
from voxtile_server.listener.spool import Spool, content_of, is_name

SUCCESS, OUT_OF_RESOURCES, NOT_OF_ITS_CLASS, NOT_UNDERSTOOD = 0x0000, 0xA700, 0xA900, 0xC000
"""Statuses of C-STORE (PS3.4, annex B.2.3)."""

TAGS = (
    "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "Modality", "SeriesDescription", "ImagePositionPatient",
)  # fmt: skip

CLASSES = (
    CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage, MRImageStorage,
    EnhancedMRImageStorage, LegacyConvertedEnhancedMRImageStorage, PositronEmissionTomographyImageStorage,
    EnhancedPETImageStorage, LegacyConvertedEnhancedPETImageStorage, NuclearMedicineImageStorage,
    XRay3DAngiographicImageStorage, XRay3DCraniofacialImageStorage,
)  # fmt: skip
"""Classes of objects that may be slices of a scan. What is made from scans is not taken: it would come round again."""

MOST_REFUSALS = 4096
"""Series of which is remembered that the audit knows why they are kept out."""

MOST_REMEMBERED = 100
"""Slices of such a series that are remembered; one is enough to know that the series is not whole."""


@dataclass(frozen=True)
class Header:
    """What an object says of itself; none of it is shown, except the modality."""

    instance: str = field(repr=False)
    series: str = field(repr=False)
    study: str = field(repr=False)
    modality: str
    description: str = field(repr=False)
    place: str = field(repr=False)

    def facts(self, senders: Iterable[str]) -> Facts:
        """What rules ask."""
        return Facts(self.modality, self.description, frozenset(senders))


@dataclass(frozen=True)
class Answer:
    """How C-STORE is answered. Attributes: status: its code; comment: why, at most 64 characters."""

    status: int
    comment: str = ""


class Intake:
    """The series in a spool, and what is taken into it. Several threads may use it."""

    def __init__(self, spool: Spool, settings: Settings, audit: Audit) -> None:
        self._spool, self._settings, self._audit = spool, settings, audit
        self._lock = threading.Lock()
        self._series = {
            folder.name: Series(folder) for folder in sorted(spool.series.iterdir()) if is_name(folder.name)
        }
        self._known_out: OrderedDict[str, set[str]] = OrderedDict()

    def all(self) -> list[Series]:
        """The series."""
        with self._lock:
            return list(self._series.values())

    def take(self, kind: str, instance: str, data: bytes, sender: str, association: Association) -> Answer:
        """Takes an object.

        Args:
            kind: the UID of its class, as the request names it.
            instance: its own UID, likewise.
            data: the object as a file.
            sender: the AE title of who sends it.
            association: what it came by.
        """
        header = header_of(data)
        if header is None:
            return Answer(NOT_UNDERSTOOD, "expected a DICOM object, found a damaged one")
        if header.instance not in ("", instance):
            return Answer(NOT_OF_ITS_CLASS, "expected the SOPInstanceUID of the request, found another")
        if not header.series:
            return Answer(NOT_OF_ITS_CLASS, "expected SeriesInstanceUID (0020,000E), found none")
        name = self._spool.name_of(header.study, header.series)
        known = self._find(name)
        facts = header.facts({sender, *(known.senders if known else ())})
        if kind not in CLASSES:
            return self._kept_out(name, header, "no slices of a scan")
        whole = known is not None and known.count > 0  # a series is kept whole or not at all
        if not whole and not any(fits(rule, facts) for rule in self._settings.rule):
            return self._kept_out(name, header, "no rule fits", self._spool.name_of(instance))
        return self._keep(name, self._spool.name_of(instance), data, header, sender, association)

    def ended(self, association: Association) -> None:
        """Notes that the other side ends an association in good order."""
        for series in self.all():
            series.carried_to_end(association, well=True)

    def forget(self, series: Series) -> None:
        """Removes a series of which nothing is left to do."""
        with self._lock, series.lock:
            if series.is_done and not series.running and not series.arriving:
                self._series.pop(series.name, None)
                series.remove()

    def _find(self, name: str) -> Series | None:
        with self._lock:
            return self._series.get(name)

    def _keep(
        self, name: str, instance: str, data: bytes, header: Header, sender: str, association: Association
    ) -> Answer:
        try:
            if self._spool.free_bytes() - len(data) < self._settings.limits.free_mib * MIB:
                return Answer(OUT_OF_RESOURCES, "no space is left on the disk of the spool")
            with self._arriving(name) as series:
                if series is None:
                    return Answer(OUT_OF_RESOURCES, "as many series are kept as may be")
                with series.lock:
                    return self._added(series, instance, data, header, sender, association)
        except (OSError, VoxtileError, MemoryError):
            return Answer(OUT_OF_RESOURCES, "the object cannot be written to the spool")
        return Answer(SUCCESS)

    def _added(
        self, series: Series, instance: str, data: bytes, header: Header, sender: str, association: Association
    ) -> Answer:
        content, there = content_of(data), series.file_of(instance)
        if there is None and series.count >= self._settings.limits.objects:
            return Answer(OUT_OF_RESOURCES, "the series has as many objects as one may have")
        before = None if there is None else header_of(there)
        if before and before.place and before.place != header.place:  # a corrected slice lies where it lay
            series.lack({*series.lacks, f"{instance}-{content}"})
            return Answer(NOT_OF_ITS_CLASS, "another slice has this SOPInstanceUID")
        series.add(instance, content, data, sender, association)
        return Answer(SUCCESS)

    @contextlib.contextmanager
    def _arriving(self, name: str) -> Iterator[Series | None]:
        """Gives a series, new or not, that is not forgotten meanwhile; None where there are too many."""
        with self._lock:
            series = self._series.get(name)
            if series is None and sum(one.count > 0 for one in self._series.values()) < self._settings.limits.series:
                series = self._series[name] = Series(self._spool.series / name)
                series.lack(self._known_out.get(name, set()))
            if series is not None:
                series.arriving += 1
        try:
            yield series
        finally:
            if series is not None:
                with self._lock:
                    series.arriving -= 1

    def _kept_out(self, name: str, header: Header, reason: str, slice_name: str | None = None) -> Answer:
        """Answers an object that is not kept; tells the audit once of its series.

        A slice is remembered: should another one of its series fit a rule, this one is missing.
        """
        with self._lock:
            new = name not in self._known_out
            out = self._known_out.setdefault(name, set())
            self._known_out.move_to_end(name)
            if slice_name is not None and len(out) < MOST_REMEMBERED:
                out.add(slice_name)
            if len(self._known_out) > MOST_REFUSALS:
                self._known_out.popitem(last=False)
        if new:
            self._audit.write(name, "kept out", reason=reason, modality=shown(header.modality))
        return Answer(SUCCESS)


def shown(modality: str) -> str:
    """A modality that may be shown: a code of DICOM, and no word that somebody wrote in its place."""
    return modality if modality.isascii() and modality.isupper() and modality.isalpha() and len(modality) <= 5 else "?"


def header_of(data: bytes | Path) -> Header | None:
    """What an object says of itself; None where it cannot be read."""
    file = File("an object", data=data) if isinstance(data, bytes) else File("an object", path=data)
    try:
        with quietly():
            found = read_header(file)
            return Header(*(text_of(found, name).strip() for name in TAGS))
    except VoxtileError:
        return None
