"""Speaks with a PACS by DIMSE: C-ECHO, C-FIND, C-GET and C-STORE."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import (
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)
from pynetdicom import AE, build_context, build_role, evt
from pynetdicom.presentation import StoragePresentationContexts
from pynetdicom.sop_class import (
    LabelMapSegmentationStorage,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    Verification,
)

from voxtile.errors import AccessError, InputError, OutputError, ServerUnavailable, VoxtileError
from voxtile.io.dicom.objects.quiet import quietly
from voxtile.pacs.access import Access, tls_context
from voxtile.pacs.address import LONGEST_AET, NodeAddress, Wanted
from voxtile.pacs.base import Object, total
from voxtile.pacs.patience import Passing
from voxtile.pacs.silence import silence
from voxtile.pacs.spool import Spool

FIND = StudyRootQueryRetrieveInformationModelFind
GET = StudyRootQueryRetrieveInformationModelGet

CONNECT_S, ANSWER_S = 10.0, 120.0
"""Seconds until a connection, and without an answer."""

PLAIN = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
COMPRESSED = [
    JPEG2000Lossless, JPEGLSLossless, JPEGLosslessSV1, JPEGLossless, RLELossless, DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian, JPEG2000, JPEGLSNearLossless, JPEGBaseline8Bit, JPEGExtended12Bit,
]  # fmt: skip
"""Transfer syntaxes that are taken as they are stored. What is not offered, a PACS would have to unpack."""

MOST_CONTEXTS = 128
"""Presentation contexts that one association can have."""

BUSY = 3
"""The source of a rejection that passes: congestion, or a limit of associations."""

PENDING = (0xFF00, 0xFF01)
OUT_OF_RESOURCES = range(0xA700, 0xA800)
STORED = frozenset({0x0000, 0xB000, 0xB006, 0xB007})
"""Success, or success with a word: an element was changed or left out."""


class NodePacs:
    """A PACS that speaks DIMSE.

    Raises:
        InputError: a token is given, which DIMSE cannot send, or a file for TLS cannot be used.
    """

    def __init__(self, address: NodeAddress, access: Access) -> None:
        silence()
        if access.token:
            raise InputError(f"{address.name}: expected no token, found one; DIMSE has none. Use its DICOMweb")
        if not (0 < len(access.aet) <= LONGEST_AET and access.aet.isascii() and access.aet.isprintable()):
            raise InputError(f"expected an AE title of 1 to {LONGEST_AET} characters for --aet, found another one")
        self._address, self._name = address, address.name
        self._aet = access.aet
        self._tls = (tls_context(access.tls), address.host) if address.tls else None

    def close(self) -> None:
        """Each call has a connection of its own."""

    def check(self) -> None:
        with self._associated([build_context(Verification)]):
            pass

    def count(self, wanted: Wanted) -> int | None:
        with self._associated([build_context(FIND)]) as association:
            level, name = ("STUDY", "Study") if wanted.series is None else ("SERIES", "Series")
            number = f"NumberOf{name}RelatedInstances"
            found = self._find(association, _keys(level, wanted, **{number: None}))
            if not found:
                raise InputError(f"{self._name}: expected a {wanted.name} with the UID given, found none there")
            return total([one.get(number) for one in found])

    def _classes(self, wanted: Wanted) -> list[str]:
        """The classes of the objects of a study or series; empty where the PACS does not say."""
        with self._associated([build_context(FIND)]) as association:
            series = [wanted]
            if wanted.series is None:
                found = self._find(association, _keys("SERIES", wanted, SeriesInstanceUID=""))
                series = [Wanted(wanted.study, str(one.get("SeriesInstanceUID"))) for one in found]
            said = {
                str(one.get("SOPClassUID") or "")
                for each in series
                for one in self._find(association, _keys("IMAGE", each, SOPInstanceUID="", SOPClassUID=""))
            }
        return sorted(said - {""})

    def fetch(self, wanted: Wanted, spool: Spool) -> None:
        classes = self._classes(wanted)
        contexts, roles = _offers(classes)
        failures: list[VoxtileError] = []

        def take(event: Any) -> int:
            try:
                spool.add(lambda file: file.write(event.encoded_dataset()))
            except VoxtileError as error:
                failures.append(error)
                return OUT_OF_RESOURCES.start
            return 0x0000

        with self._associated([build_context(GET), *contexts], roles, [(evt.EVT_C_STORE, take)]) as association:
            self._check_offered(association, GET, "C-GET")
            with self._told(InputError):
                keys = _keys("STUDY" if wanted.series is None else "SERIES", wanted)
                last = [status for status, _ in association.send_c_get(keys, GET)][-1]
        if failures:
            raise failures[0]
        self._check_status(last, "C-GET")

    def holds(self, one: Object) -> bool | None:
        try:
            with self._associated([build_context(FIND)]) as association:
                keys = _keys("IMAGE", Wanted(one.study, one.series), SOPInstanceUID=one.instance)
                found = self._find(association, keys)
        except InputError:  # it offers no C-FIND
            return None
        return any(each.get("SOPInstanceUID") == one.instance for each in found)

    def store(self, one: Object) -> None:
        dataset = one.read()
        syntax = UID(dataset.file_meta.get("TransferSyntaxUID") or ImplicitVRLittleEndian)
        offered = [[syntax], *([PLAIN] if syntax in PLAIN else [])]
        with self._associated([build_context(one.sop_class, each) for each in offered]) as association:
            if not association.accepted_contexts:
                raise self._not_taken(one, syntax)
            with self._told(OutputError):
                status = association.send_c_store(dataset)
        code = status.get("Status")
        if code is None:
            raise Passing(ServerUnavailable(f"{self._name}: the connection was lost before the object was stored"))
        if code not in STORED:
            error = OutputError(f"{self._name}: does not store the object (status {code:04X})")
            raise Passing(error) if code in OUT_OF_RESOURCES else error

    def _not_taken(self, one: Object, syntax: UID) -> OutputError:
        is_labelmap = one.sop_class == LabelMapSegmentationStorage
        kind = "Label Map Segmentation Storage" if is_labelmap else UID(one.sop_class).name
        other = "--seg binary, or " if is_labelmap else ""
        return OutputError(f"{self._name}: does not take {kind} in {syntax.name} by C-STORE; use {other}its DICOMweb")

    def _find(self, association: Any, keys: Dataset) -> list[Dataset]:
        self._check_offered(association, FIND, "C-FIND")
        found, last = [], Dataset()
        with self._told(InputError):
            for status, identifier in association.send_c_find(keys, FIND):
                last = status
                if identifier is not None and status.get("Status") in PENDING:
                    found.append(identifier)
        self._check_status(last, "C-FIND")
        return found

    def _check_offered(self, association: Any, service: str, name: str) -> None:
        if not any(one.abstract_syntax == service for one in association.accepted_contexts):
            raise InputError(f"{self._name}: expected a node that offers {name}, found none; use its DICOMweb")

    def _check_status(self, status: Dataset, service: str) -> None:
        code = status.get("Status")
        if code is None:
            raise Passing(ServerUnavailable(f"{self._name}: the connection was lost in {service}"))
        failed = status.get("NumberOfFailedSuboperations") or 0
        if code == 0x0000 and not failed:
            return
        sent = f", {failed} objects could not be sent" if failed else ""
        error = InputError(f"{self._name}: {service} failed (status {code:04X}{sent}); nothing is used")
        raise Passing(error) if code in OUT_OF_RESOURCES else error

    @contextlib.contextmanager
    def _associated(
        self, contexts: Sequence[Any], roles: Sequence[Any] = (), handlers: Sequence[Any] = ()
    ) -> Iterator[Any]:
        """An association, which may have accepted none of the contexts."""
        entity = AE(self._aet)
        entity.connection_timeout = entity.acse_timeout = CONNECT_S
        entity.dimse_timeout = entity.network_timeout = ANSWER_S
        with quietly():
            try:
                association = entity.associate(
                    self._address.host, self._address.port, list(contexts), self._address.aet,
                    ext_neg=list(roles), evt_handlers=list(handlers), tls_args=self._tls,
                )  # fmt: skip
            except (OSError, ValueError):  # a host without a number
                raise Passing(ServerUnavailable(f"{self._name}: no such host")) from None
            if not association.is_established and not association.rejected_contexts:
                raise self._no_association(association)
            try:
                yield association
            except BaseException:  # an orderly end would wait for what is still on its way
                association.abort()
                raise
            if association.is_established:
                association.release()

    def _no_association(self, association: Any) -> Exception:
        if association.dul.socket is not None and association.dul.socket.socket is not None:
            association.dul.socket.socket.close()  # pynetdicom does not where the other side has gone
        if not association.is_rejected:
            return Passing(ServerUnavailable(f"{self._name}: no DICOM node answers there"))
        answer = association.acceptor.primitive
        reason = "no reason given" if answer is None else answer.reason_str
        if answer is not None and answer.result_source == BUSY:
            return Passing(ServerUnavailable(f"{self._name}: cannot answer now ({reason})"))
        return AccessError(
            f"{self._name}: refuses the association ({reason}); check the AE title before the @, and that it knows "
            f"this one, {self._aet}"
        )

    @contextlib.contextmanager
    def _told(self, kind: type[VoxtileError]) -> Iterator[None]:
        """Says in one line what pynetdicom raises; its text may repeat what an object holds."""
        try:
            yield
        except RuntimeError:
            raise Passing(ServerUnavailable(f"{self._name}: the connection was lost")) from None
        except (ValueError, AttributeError, TypeError) as error:
            raise kind(f"{self._name}: the object cannot be sent as it is ({type(error).__name__})") from None


def _keys(level: str, wanted: Wanted, **more: Any) -> Dataset:
    """What a query asks for."""
    keys = Dataset()
    keys.QueryRetrieveLevel = level
    keys.StudyInstanceUID = wanted.study
    if wanted.series is not None:
        keys.SeriesInstanceUID = wanted.series
    for name, value in more.items():
        setattr(keys, name, value)
    return keys


def _offers(classes: Sequence[str]) -> tuple[list[Any], list[Any]]:
    """The presentation contexts, and the roles, in which objects of these classes are taken."""
    known = classes or [one.abstract_syntax for one in StoragePresentationContexts]
    each = [PLAIN, *([syntax] for syntax in COMPRESSED)]
    if len(known) * len(each) >= MOST_CONTEXTS:
        each = [[*PLAIN, *COMPRESSED]]
    known = known[: (MOST_CONTEXTS - 1) // len(each)]
    contexts = [build_context(one, syntaxes) for one in known for syntaxes in each]
    return contexts, [build_role(UID(one), scp_role=True) for one in known]
