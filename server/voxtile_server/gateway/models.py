"""The models behind the gateway: one connection for each, opened at its first scan. Knows nothing of HTTP."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping, Sequence

from voxtile import Options, Segmenter
from voxtile.asked import with_asked
from voxtile.triton.catalogue import ModelListing, list_models
from voxtile.triton.connection import ConnectionConfig
from voxtile.triton.endpoint import Endpoint
from voxtile.triton.grpc_transport import connect_transport
from voxtile.triton.transport import Transport
from voxtile_server.gateway.shared import Shared


class Models:
    """Connections by the names of their models, shared by all scans. Several threads may use it.

    Args:
        urls: HOST:PORT of the servers.
        connection: how to reach them.
        options: what holds where a caller chooses nothing; `max_ram_mib` is a limit for callers too.
    """

    def __init__(self, urls: Sequence[str], connection: ConnectionConfig, options: Options) -> None:
        self._urls, self._connection, self._options = list(urls), connection, options
        self._open: dict[str, Shared] = {}
        self._doors: weakref.WeakValueDictionary[str, threading.Lock] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()  # of the two; never held while a server is asked

    def listed(self, url: str | None = None) -> list[ModelListing]:
        """What a server offers.

        Args:
            url: its address; None for the first one.

        Raises:
            ServerUnavailable: it does not answer.
        """
        endpoint = Endpoint(url or self._urls[0], self._connection)
        try:
            return list_models(endpoint)
        finally:
            endpoint.close()

    def segmenter(self, name: str, asked: Mapping[str, str]) -> Segmenter:
        """A segmenter of the model with the options that a caller asks for; one that nobody holds is closed.

        It waits where a server loads the model first.

        Raises:
            InputError: an option that there is not, or a value that it cannot have.
            ModelError: there is no such model.
            ServerUnavailable: no server answers.
        """
        return Segmenter(model=name, options=with_asked(self._options, asked), connect=self._borrowed)

    def forget_all(self) -> None:
        """No further scan uses the connections that there are: the next one of a model makes a new one.

        Scans that run go on; a connection is closed with the last of them.
        """
        with self._lock:
            old, self._open = list(self._open.values()), {}
        for shared in old:
            shared.retire()

    def _borrowed(self, name: str) -> Transport:
        """The connection to a model; a new one where the public name has moved to another version since.

        Scans that run go on with the old one, and with the version that they began with. Who waits for a server that
        loads the model keeps only those waiting that want the same one.
        """
        with self._door(name):
            shared = self._open.get(name)
            borrowed = None if shared is None else shared.borrowed()
            if shared is not None and borrowed is not None:
                if not shared.transport.has_moved():
                    return borrowed
                borrowed.close()
            fresh = Shared(connect_transport(self._urls, name, self._connection))
            borrowed = fresh.borrowed()
            assert borrowed is not None, "nobody else knows of it yet"
            with self._lock:
                self._open[name] = fresh
            if shared is not None:
                shared.retire()
            return borrowed

    def _door(self, name: str) -> threading.Lock:
        """Lets one at a time connect to a model. It goes with the last who holds it: callers may invent any name."""
        with self._lock:
            return self._doors.setdefault(name, threading.Lock())
