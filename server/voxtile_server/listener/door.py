"""The DICOM node that others send to: C-ECHO and C-STORE, who may call, what is taken in which form.

Knows nothing of series, nor of what becomes of objects.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import socketserver
import ssl
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.pdu import A_RELEASE_RQ, P_DATA_TF
from pynetdicom.presentation import AllStoragePresentationContexts
from pynetdicom.sop_class import Verification
from pynetdicom.transport import ThreadedAssociationServer

from voxtile.errors import InputError, OutputError
from voxtile.pacs.node import COMPRESSED, PLAIN
from voxtile.pacs.silence import silence
from voxtile_server.listener.intake import OUT_OF_RESOURCES, Answer
from voxtile_server.listener.series import Association
from voxtile_server.listener.settings import MIB, Listen

SYNTAXES = [*PLAIN, *COMPRESSED]

HANDSHAKE_S = 10.0
"""Seconds for what comes before the first message."""

LONGEST_COMMENT = 64

Take = Callable[[str, str, bytes, str, Association], Answer]
"""Takes an object: its class's UID and its own, the object as a file, the sender's AE title, the association."""


@contextlib.contextmanager
def opened(listen: Listen, largest_mib: float, take: Take, ended: Callable[[Association], None]) -> Iterator[int]:
    """Listens; gives the port. Associations that are open at the end are broken off.

    Args:
        listen: who may call, and where.
        largest_mib: an association that sends more than this without an object in it is ended.
        take: gets each object, on a thread of its association.
        ended: is told of an association that the other side ends in good order, before it is answered.

    Raises:
        InputError: a certificate cannot be used.
        OutputError: the port is taken, or the address is not this machine's.
    """
    silence()
    entity = AE(listen.aet)
    entity.require_called_aet = listen.check_called
    entity.require_calling_aet = list(listen.callers)
    entity.maximum_associations = listen.associations
    entity.acse_timeout = entity.dimse_timeout = HANDSHAKE_S
    entity.network_timeout = listen.silence_seconds
    entity.add_supported_context(Verification)
    for context in AllStoragePresentationContexts:  # where one class is refused, some senders send nothing of a study
        entity.add_supported_context(context.abstract_syntax, SYNTAXES)
    handlers = _Handlers(int(largest_mib * MIB), take, ended)
    tls = None if listen.tls_certificate is None else _tls(listen)
    try:
        door = _Door(entity, (listen.host, listen.port), listen.aet, entity.supported_contexts, None, handlers.all())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no such address"
        raise OutputError(f"cannot listen on {listen.host}:{listen.port}: {reason}; choose another host or port") from (
            None
        )
    door.allowed, door.tls = listen.addresses, tls
    thread = threading.Thread(target=door.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    try:
        yield int(door.socket.getsockname()[1])
    finally:
        socketserver.BaseServer.shutdown(door)  # pynetdicom's own expects that its AE has started it
        door.server_close()
        for association in door.active_associations:
            association.abort()
        thread.join()


class _Handlers:
    """What is done at each event of an association."""

    def __init__(self, most: int, take: Take, ended: Callable[[Association], None]) -> None:
        self._most, self._take, self._ended = most, take, ended
        self._bytes: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def all(self) -> list[tuple[Any, Callable[[Any], Any]]]:
        return [(evt.EVT_C_STORE, self._store), (evt.EVT_PDU_RECV, self._received)]

    def _store(self, event: Any) -> Dataset:
        try:
            data = event.encoded_dataset()
        except MemoryError:
            return _status(Answer(OUT_OF_RESOURCES, "the memory does not hold the object"))
        self._bytes[event.assoc] = 0
        sender = event.assoc.requestor.ae_title.strip()
        kind, instance = str(event.request.AffectedSOPClassUID), str(event.request.AffectedSOPInstanceUID)
        return _status(self._take(kind, instance, data, sender, event.assoc))

    def _received(self, event: Any) -> None:
        """Counts what an association sends, which pynetdicom would keep in memory however much it is."""
        if isinstance(event.pdu, A_RELEASE_RQ):
            self._ended(event.assoc)
        elif isinstance(event.pdu, P_DATA_TF):
            self._bytes[event.assoc] = self._bytes.get(event.assoc, 0) + len(event.pdu)
            if self._bytes[event.assoc] > self._most:
                event.assoc.abort(block=False)


class _Door(ThreadedAssociationServer):  # type: ignore[misc]  # pynetdicom has no types
    """Lets in whom it may; no caller that says nothing keeps another one waiting.

    Attributes:
        allowed: networks that may connect; empty for all.
        tls: how connections are encrypted; None for in the clear.
    """

    allowed: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = ()
    tls: ssl.SSLContext | None = None

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether a connection from there is answered."""
        address = ipaddress.ip_address(str(client_address[0]).partition("%")[0])
        mapped = getattr(address, "ipv4_mapped", None)
        return not self.allowed or any((mapped or address) in network for network in self.allowed)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Agrees on the encryption on the connection's own thread; pynetdicom would keep all others waiting for it."""
        try:
            wrapped = self._encrypted(request)
        except OSError:  # also what is wrong with a certificate
            self.shutdown_request(request)
            return
        super().process_request_thread(wrapped, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that goes away is no news."""

    def _encrypted(self, request: socket.socket) -> socket.socket:
        if self.tls is None:
            return request
        request.settimeout(HANDSHAKE_S)
        wrapped = self.tls.wrap_socket(request, server_side=True)
        wrapped.settimeout(None)
        return wrapped


def _status(answer: Answer) -> Dataset:
    status = Dataset()
    status.Status = answer.status
    if answer.comment:
        status.ErrorComment = answer.comment[:LONGEST_COMMENT]
    return status


def _tls(listen: Listen) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(str(listen.tls_certificate), listen.tls_key, password="")
        if listen.tls_ca is not None:
            context.load_verify_locations(listen.tls_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ValueError):
        raise InputError(
            "listen: expected tls_certificate, tls_key without a password and tls_ca as PEM, found something else"
        ) from None
    return context
