"""Keeps the models of a running server within its limits, and answers clients that ask for one."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from voxtile_server.errors import ServerError
from voxtile_server.residency.catalogue import Catalogue
from voxtile_server.residency.door import ENTRY, Door
from voxtile_server.residency.rules import Answer, Load, Rules, Unload
from voxtile_server.residency.triton import LoadError, Triton

log = logging.getLogger("voxtile.server")

TICK_S = 0.5
"""How often the server is asked for its models' use. A model may be unloaded so much later than it is due."""


class Residency:
    """The models of one server. `begin` once it runs, `close` at its end; its door is needed to start it.

    Args:
        repository: the folder of model entries.
        rules: the limits.

    Raises:
        ServerError: the client is not installed, an entry has the door's name, or there is no temporary folder.
    """

    def __init__(self, repository: Path, rules: Rules) -> None:
        _require_client()
        self._catalogue = Catalogue(repository)
        if self._catalogue.has(ENTRY):
            raise ServerError(f"{repository / ENTRY} has a name that --max-models and --idle use; rename the model")
        self._rules = rules
        self._lock, self._stopping, self._asked = threading.Lock(), threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._door = Door(self._answer)

    @property
    def door(self) -> Path:
        """The repository with the entry `ENTRY`, which the server loads at its start."""
        return self._door.repository

    @property
    def loaded(self) -> list[str]:
        """The models that are loaded, by name."""
        with self._lock:
            return self._rules.loaded

    def begin(self, url: str, headers: Mapping[str, str]) -> None:
        """Starts to load and unload. The server runs, and nothing of its repository is loaded.

        Args:
            url: HOST:PORT of its gRPC service.
            headers: what lets calls of control in.
        """
        triton = Triton(url, headers, self._catalogue)
        self._thread = threading.Thread(target=self._run, args=(triton,), name="voxtile-residency", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends it; a call to the server that is under way is not waited for. The server may have ended before."""
        self._stopping.set()
        self._asked.set()
        self._door.close()

    # What clients ask ----------------------------------------------------------------------------------------

    def _answer(self, name: str) -> str:
        if not name:
            return json.dumps({"models": self._listed()})
        if self._catalogue.offer(name) is None and not self._may_be_broken(name):
            return json.dumps(asdict(Answer("refused", f"the repository has no model of that name; {self._names()}")))
        with self._lock:
            answer = self._rules.ask(name, time.monotonic())
        self._asked.set()
        return json.dumps(asdict(answer))

    def _may_be_broken(self, name: str) -> bool:
        """Whether Triton must say what is wrong with an entry that cannot be read here."""
        return self._catalogue.has(name) and not self._catalogue.readable(name)

    def _names(self) -> str:
        return f"it has: {', '.join(offer.name for offer in self._catalogue.offers()) or 'nothing'}"

    def _listed(self) -> list[dict[str, object]]:
        loaded = self.loaded
        return [{**asdict(offer), "loaded": offer.name in loaded} for offer in self._catalogue.offers()]

    # What is done --------------------------------------------------------------------------------------------

    def _run(self, triton: Triton) -> None:
        silent = False
        while not self._stopping.is_set():
            try:
                if not self._step(triton):
                    self._asked.wait(TICK_S)
                    self._asked.clear()
                silent = False
            except Exception as error:  # a server that does not answer may do so again
                if not self._stopping.is_set() and not silent:
                    log.warning("no model is loaded or unloaded: the server does not answer (%s)", error)
                silent = True
                with self._lock:
                    self._rules.was_kept(time.monotonic())
                self._stopping.wait(TICK_S)
        triton.close()

    def _step(self, triton: Triton) -> bool:
        """Does what is to be done now; says whether there was anything."""
        uses, replaced = triton.uses(), triton.replaced()
        with self._lock:
            now = time.monotonic()
            self._rules.observe(uses, now)
            todo = self._rules.next(now, replaced)
        if isinstance(todo, Load):
            self._load(triton, todo.name)
        elif isinstance(todo, Unload):
            self._unload(triton, todo.name)
        return todo is not None

    def _load(self, triton: Triton, name: str) -> None:
        log.info("loading %s", name)
        try:
            triton.load(name, self._stopping)
        except LoadError as error:
            log.warning("%s could not be loaded: %s", name, error)
            with self._lock:
                self._rules.has_failed(name, str(error), time.monotonic())
            return
        with self._lock:
            self._rules.was_loaded(name, time.monotonic())
        log.info("loaded %s", name)

    def _unload(self, triton: Triton, name: str) -> None:
        log.info("unloading %s", name)
        triton.unload(name, self._stopping)
        with self._lock:
            self._rules.was_unloaded(name)
        log.info("unloaded %s", name)


def _require_client() -> None:
    try:
        import tritonclient.grpc  # noqa: F401
    except ImportError:
        raise ServerError(
            "--max-models and --idle need Triton's client; install it with pip install 'voxtile-server[residency]'"
        ) from None
