"""The models behind the gateway: one connection for each, opened at its first scan. Knows nothing of HTTP."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

from voxtile import Options, Segmenter
from voxtile.asked import with_asked
from voxtile.triton.catalogue import ModelListing, list_models
from voxtile.triton.connection import ConnectionConfig
from voxtile.triton.endpoint import Endpoint
from voxtile.triton.grpc_transport import GrpcTransport, connect_transport
from voxtile.triton.transport import Transport


class Models:
    """Connections by the names of their models, shared by all scans. Several threads may use it.

    Args:
        urls: HOST:PORT of the servers.
        connection: how to reach them.
        options: what holds where a caller chooses nothing; `max_ram_mib` is a limit for callers too.
    """

    def __init__(self, urls: Sequence[str], connection: ConnectionConfig, options: Options) -> None:
        self._urls, self._connection, self._options = list(urls), connection, options
        self._open: dict[str, GrpcTransport] = {}
        self._moved: list[GrpcTransport] = []
        self._lock = threading.Lock()

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
        """A segmenter of the model with the options that a caller asks for; it need not be closed.

        Raises:
            InputError: an option that there is not, or a value that it cannot have.
            ModelError: there is no such model.
            ServerUnavailable: no server answers.
        """
        return Segmenter(model=name, options=with_asked(self._options, asked), connect=self._borrowed)

    def forget_all(self) -> None:
        """Ends all connections; the next scan of a model makes a new one, which knows what is served by then."""
        with self._lock:
            old, self._open, self._moved = [*self._open.values(), *self._moved], {}, []
        for transport in old:
            transport.close()

    def _borrowed(self, name: str) -> Transport:
        """The connection to a model; a new one where the public name has moved to another version since.

        Scans that run go on with the old one, and with the version that they began with.
        """
        with self._lock:
            if name in self._open and self._open[name].has_moved():
                self._moved.append(self._open.pop(name))
            if name not in self._open:
                self._open[name] = connect_transport(self._urls, name, self._connection)
            return _Borrowed(self._open[name])


class _Borrowed:
    """A transport that somebody else closes: a `Segmenter` closes its own, also where its options are refused."""

    def __init__(self, transport: Transport) -> None:
        self.model, self.servers, self.infer = transport.model, transport.servers, transport.infer

    def close(self) -> None:
        """Leaves it open."""
