"""Keeps the shared memory of one server: takes a slot for a request, takes it back, drops what is not trusted.

Knows nothing of tiles or models. Several threads may use one pool at once.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from voxtile.errors import InputError
from voxtile.triton.shared_memory import Region, forget_dead_clients

RELEASE_TIMEOUT_S = 2.0
"""How long `close` waits for the server to let go of cancelled work. A later client clears up what remains."""

POLL_S = 0.02


class SlotPool:
    """Regions shared with the server behind `client`, reused from request to request.

    Args:
        client: a tritonclient.grpc.InferenceServerClient.
        url: the server's address.
        wanted: true to insist on shared memory, False to do without, None to use it where it works.
    """

    def __init__(self, client: Any, url: str, wanted: bool | None) -> None:
        self._client = client
        self._url = url
        self._local = _is_local(url)
        self._wanted = wanted
        self._shared = wanted
        self._idle: list[Region] = []
        self._dropped: list[Region] = []
        self._lock = threading.Lock()

    @property
    def shared(self) -> bool:
        """Whether requests go through shared memory, as far as is known."""
        return bool(self._shared)

    def take(self, size: int) -> Region | None:
        """Returns a region of at least `size` bytes; None where the server and this process share no memory.

        Raises:
            InputError: shared memory was insisted on and cannot be had.
        """
        if self._shared is None:
            self._shared = self._local and self._try_sharing()
        if not self._shared:
            return None
        while (slot := self._pop()) is not None:
            if slot.size >= size:
                return slot
            self.drop(slot)
        return self._new(size)

    def give_back(self, slot: Region) -> None:
        """Takes back a region that the server has finished with."""
        with self._lock:
            self._idle.append(slot)

    def drop(self, slot: Region) -> None:
        """Takes back a region that the server may still write to: it is never used again.

        It is closed later: a server that is slow to answer would otherwise delay the caller for each region.
        """
        with self._lock:
            self._dropped.append(slot)

    def forget(self) -> None:
        """Drops all idle regions, as after a server's restart."""
        with self._lock:
            self._dropped += self._idle
            self._idle.clear()
        self._close_dropped()

    def can_share(self) -> bool:
        """Tries with a small region whether memory can be shared."""
        region = self._new(4096) if self._local and self._try_sharing() else None
        if region is not None:
            self.drop(region)
        return region is not None

    def close(self) -> None:
        """Closes all regions; waits a little for the server to let go of cancelled work."""
        self.forget()
        deadline = time.monotonic() + RELEASE_TIMEOUT_S
        while self._dropped and time.monotonic() < deadline:
            time.sleep(POLL_S)
            self._close_dropped()

    def abandon(self) -> None:
        """Lets go of all regions without a word to the server: after a fork they are the parent process's."""
        self._idle, self._dropped = [], []

    def _pop(self) -> Region | None:
        with self._lock:
            return self._idle.pop() if self._idle else None

    def _close_dropped(self) -> None:
        with self._lock:
            closing, self._dropped = self._dropped, []
        remaining = [region for region in closing if not region.close()]
        with self._lock:
            self._dropped += remaining

    def _new(self, size: int) -> Region | None:
        from tritonclient.utils import InferenceServerException

        self._close_dropped()
        try:
            return Region(self._client, size)
        except (OSError, InferenceServerException) as error:
            if self._wanted:
                raise InputError(
                    f"--shared-memory was asked for, but {self._url} and this process cannot share memory ({error})"
                ) from None
            self._shared = False
            return None

    def _try_sharing(self) -> bool:
        from tritonclient.utils import InferenceServerException

        try:
            forget_dead_clients(self._client)
        except InferenceServerException:
            return False
        return True


def _is_local(url: str) -> bool:
    """Whether `url` names this machine."""
    host = url.rpartition(":")[0].strip("[]")
    return host in ("localhost", "::1") or host.startswith("127.")
