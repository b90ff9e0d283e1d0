"""Loads and unloads models through Triton's explicit control, and asks how much they are used.

An entry for clients is an ensemble, and Triton loads the engines behind it with it. It is unloaded first, alone: what
is under way in it still needs its engines. They follow once it is gone, except those that another loaded model needs.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from voxtile_server.residency.catalogue import Catalogue, Stamp
from voxtile_server.residency.rules import Use

CALL_S = 10.0
"""Seconds that a question may take."""

POLL_S = 0.1


class LoadError(Exception):
    """Triton could not load a model; the text is its reason."""


class Triton:
    """The control of one server. One thread uses it.

    Args:
        url: HOST:PORT of its gRPC service.
        headers: what lets calls of control in.
        catalogue: the repository that it reads.
    """

    def __init__(self, url: str, headers: Mapping[str, str], catalogue: Catalogue) -> None:
        from tritonclient.grpc import InferenceServerClient

        self._client = InferenceServerClient(url)
        self._headers, self._catalogue = dict(headers), catalogue
        self._engines: dict[str, frozenset[str]] = {}
        self._seen: dict[str, tuple[Stamp | None, str]] = {}  # how each model's entry was when it was loaded

    def load(self, name: str, stopping: threading.Event) -> None:
        """Loads a model, with the engines behind it. Raises LoadError where it cannot be loaded.

        It takes as long as it takes: Triton would go on loading what is no longer waited for.
        """
        while (failure := self._tried(name, stopping)) is not None:
            reason, entry_has_changed = failure
            if not entry_has_changed or stopping.is_set():
                raise LoadError(reason)

    def _tried(self, name: str, stopping: threading.Event) -> tuple[str, bool] | None:
        """Why a model was not loaded, and whether its entry has changed meanwhile: then one half of it was another."""
        from tritonclient.utils import InferenceServerException

        stamp, engines, offer = self._catalogue.stamp(name), self._catalogue.engines(name), self._catalogue.offer(name)
        reason = None
        try:
            self._client.load_model(name, headers=self._headers)
        except InferenceServerException as error:
            reason = error.message() or "Triton gives no reason"
        engines |= self._catalogue.engines(name)
        if reason is None:
            self._engines[name] = engines
            self._seen[name] = (stamp, "" if offer is None else offer.card)
            return None
        reason = self._reason({name, *engines}) or reason
        self._wait_until_gone(self._let_go(engines), stopping)
        return reason, stamp != self._catalogue.stamp(name)

    def unload(self, name: str, stopping: threading.Event) -> None:
        """Unloads a model: returns when its last request is answered and its engines are gone, or on `stopping`."""
        self._client.unload_model(name, headers=self._headers, client_timeout=CALL_S)
        self._wait_until_gone({name}, stopping)
        engines = self._engines.pop(name, frozenset())
        self._seen.pop(name, None)
        self._wait_until_gone(self._let_go(engines), stopping)

    def uses(self) -> dict[str, Use]:
        """How much each loaded entry is used."""
        found = self._client.get_inference_statistics(headers=self._headers, client_timeout=CALL_S).model_stats
        return {one.name: _use(one.inference_stats) for one in found}

    def replaced(self) -> list[str]:
        """The loaded models whose entries in the repository have other cards by now, such as a name that was moved.

        An entry that cannot be read just now is none: one that is built again is away for a moment.
        """
        return [name for name, (stamp, card) in list(self._seen.items()) if self._is_other(name, stamp, card)]

    def _is_other(self, name: str, stamp: Stamp | None, card: str) -> bool:
        now = self._catalogue.stamp(name)
        if now == stamp:
            return False
        offer = self._catalogue.offer(name)
        if offer is not None and offer.card == card:
            self._seen[name] = (now, card)
        return offer is not None and offer.card != card

    def close(self) -> None:
        """Ends the connection."""
        self._client.close()

    def _let_go(self, engines: frozenset[str]) -> frozenset[str]:
        """Tells Triton to unload those of the engines that no loaded model needs; returns them."""
        unused = engines.difference(*self._engines.values())
        for engine in sorted(unused):
            self._client.unload_model(engine, headers=self._headers, client_timeout=CALL_S)
        return unused

    def _wait_until_gone(self, names: frozenset[str] | set[str], stopping: threading.Event) -> None:
        while not stopping.wait(POLL_S):
            if not any(one.state in ("READY", "UNLOADING", "LOADING") for one in self._index() if one.name in names):
                return

    def _reason(self, names: set[str]) -> str:
        """What Triton says of the entries that it could not load, without the traceback of their process."""
        told = {one.name: one.reason.split("\n\nAt:")[0] for one in self._index() if one.name in names and one.reason}
        return "; ".join(f"{name}: {' '.join(why.split())}" for name, why in told.items() if why != "unloaded")

    def _index(self) -> list[Any]:
        return list(self._client.get_model_repository_index(headers=self._headers, client_timeout=CALL_S).models)


def _use(stats: Any) -> Use:
    answered = stats.success.count
    return Use(answered + stats.fail.count, stats.success.ns / answered / 1e9 if answered else 0.0)
