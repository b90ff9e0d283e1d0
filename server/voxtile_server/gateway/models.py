"""The models behind the gateway: one connection for each, opened at its first scan. Knows nothing of HTTP."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

from voxtile import Options, Segmenter
from voxtile.asked import with_asked
from voxtile.triton.catalogue import ModelListing, list_models
from voxtile.triton.connection import ConnectionConfig
from voxtile.triton.endpoint import Endpoint
from voxtile.triton.transport import Transport


class Models:
    """Segmenters by the names of their models. Several threads may use it.

    Args:
        urls: HOST:PORT of the servers.
        options: what holds where a caller chooses nothing; `max_ram_mib` is a limit for callers too.
    """

    def __init__(self, urls: Sequence[str], options: Options) -> None:
        self._urls, self._options = list(urls), options
        self._open: dict[str, Segmenter] = {}
        self._lock = threading.Lock()

    def listed(self) -> list[ModelListing]:
        """What the first server that answers offers.

        Raises:
            ServerUnavailable: none answers.
        """
        endpoint = Endpoint(self._urls[0], ConnectionConfig())
        try:
            return list_models(endpoint)
        finally:
            endpoint.close()

    def segmenter(self, name: str, asked: Mapping[str, str]) -> Segmenter:
        """A segmenter of the model with the options that a caller asks for; its connection belongs to this object.

        Raises:
            InputError: an option that there is not, or a value that it cannot have.
            ModelError: there is no such model.
            ServerUnavailable: no server answers.
        """
        return _borrowed(self._segmenter(name), with_asked(self._options, asked))

    def _segmenter(self, name: str) -> Segmenter:
        with self._lock:
            found = self._open.get(name)
            if found is None:
                found = self._open[name] = Segmenter(self._urls, name, self._options)
            return found

    def forget(self, name: str) -> None:
        """Closes a model's connection: the model may have been built again."""
        with self._lock:
            found = self._open.pop(name, None)
        if found is not None:
            found.close()

    def close(self) -> None:
        """Ends all connections."""
        for name in list(self._open):
            self.forget(name)


class _Borrowed:
    """A transport that somebody else closes: a `Segmenter` closes its own, also where its options are refused."""

    def __init__(self, transport: Transport) -> None:
        self.model, self.servers, self.infer = transport.model, transport.servers, transport.infer

    def close(self) -> None:
        """Leaves it open."""


def _borrowed(base: Segmenter, options: Options) -> Segmenter:
    """A segmenter over the connections of `base`, with other options."""
    previous = _borrowed(base.previous, base.previous.options) if base.previous else None
    return Segmenter(transport=_Borrowed(base.transport), options=options, previous=previous)
