"""A DICOM node that answers as a test says, in place of a PACS that does something odd."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    Verification,
)

TITLE = "NODE"


@dataclass
class Node:
    """How a node answers, and what it was asked.

    Attributes:
        objects: what C-GET sends.
        told: what C-FIND says of how many there are; None for nothing, and there is no such series where it is 0.
        sends: how many of `objects` each C-GET sends in turn; the last one goes on. None for all.
        statuses: how C-STORE answers in turn; the last one goes on. None for a connection that is broken instead.
        services: what it offers.
        kinds: the classes of objects that it takes.
        stored: what was stored.
        calls: the service of each call.
    """

    objects: Sequence[FileDataset] = ()
    told: int | None = None
    sends: list[int | None] = field(default_factory=lambda: [None])
    statuses: list[int | None] = field(default_factory=lambda: [0])
    services: Sequence[str] = (
        Verification,
        StudyRootQueryRetrieveInformationModelFind,
        StudyRootQueryRetrieveInformationModelGet,
    )
    kinds: Sequence[str] = (CTImageStorage,)
    stored: list[Dataset] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)

    def find(self, event: Any) -> Iterator[tuple[int, Dataset | None]]:
        """Answers C-FIND."""
        self.calls.append("C-FIND")
        level = event.identifier.QueryRetrieveLevel
        if level == "IMAGE" and "SOPClassUID" not in event.identifier:
            wanted = event.identifier.SOPInstanceUID
            found = [one for one in self.stored if one.SOPInstanceUID == wanted]
        else:
            found = [] if self.told == 0 else list(self.objects)[: None if level == "IMAGE" else 1]
        for one in found:
            answer = Dataset()
            answer.SOPInstanceUID, answer.SOPClassUID = one.SOPInstanceUID, one.SOPClassUID
            answer.SeriesInstanceUID = one.SeriesInstanceUID
            answer.NumberOfSeriesRelatedInstances = answer.NumberOfStudyRelatedInstances = self.told
            answer.PatientName = one.PatientName
            yield 0xFF00, answer

    def get(self, event: Any) -> Iterator[Any]:
        """Answers C-GET."""
        self.calls.append("C-GET")
        sent = _next(self.sends)
        if sent == -1:
            event.assoc.abort()
            return
        chosen = list(self.objects)[:sent]
        yield len(chosen)
        for one in chosen:
            yield 0xFF00, one

    def store(self, event: Any) -> int:
        """Answers C-STORE."""
        self.calls.append("C-STORE")
        status = _next(self.statuses)
        if status is None:
            event.assoc.abort()
            return 0xA700
        if status in (0, 0xB000):
            self.stored.append(event.dataset)
        return status


def _next(values: list[Any]) -> Any:
    return values.pop(0) if len(values) > 1 else values[0]


@contextlib.contextmanager
def node_pacs(node: Node, check_titles: Callable[[AE], None] = lambda _: None) -> Iterator[str]:
    """Runs a node; gives its address."""
    entity = AE(TITLE)
    for service in node.services:
        entity.add_supported_context(service)
    for kind in node.kinds:
        entity.add_supported_context(kind, ExplicitVRLittleEndian, scu_role=True, scp_role=True)
    check_titles(entity)
    handlers = [(evt.EVT_C_FIND, node.find), (evt.EVT_C_GET, node.get), (evt.EVT_C_STORE, node.store)]
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    try:
        yield f"{TITLE}@127.0.0.1:{server.socket.getsockname()[1]}"
    finally:
        server.shutdown()
