"""Keeps the shared memory of one server: takes a slot for a request, takes it back, drops what is not trusted.

Knows nothing of tiles or models. Several threads may use one pool at once.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from dataclasses import dataclass, field

from voxtile.errors import InputError
from voxtile.triton import shared_memory
from voxtile.triton.connection import is_local
from voxtile.triton.faults import Fault, classify
from voxtile.triton.shared_memory import Region, ServerMemory, forget_dead_clients

log = logging.getLogger(__name__)

RELEASE_TIMEOUT_S = 5.0
"""How long `close` waits for the server to let go of cancelled work. A later client clears up what remains."""

POLL_S = 0.02

RETRY_S = 30.0
"""Seconds after which memory is asked for again where this machine had none."""


@dataclass
class _Slots:
    """The regions of one pool. They outlive a pool that nobody closed, so that its finalizer can."""

    idle: list[Region] = field(default_factory=list)
    dropped: list[Region] = field(default_factory=list)
    lent: set[Region] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)


class SlotPool:
    """Regions shared with a server, reused from request to request.

    Args:
        server: who maps the regions with us.
        url: the server's address.
        wanted: true to insist on shared memory, False to do without, None to use it where it works.
    """

    def __init__(self, server: ServerMemory, url: str, wanted: bool | None) -> None:
        self._server = server
        self._url = url
        self._wanted = wanted
        self._usable = is_local(url) if wanted is None else wanted
        self._cleaned = self._told = False
        self._try_again_at = 0.0
        self._slots = _Slots()
        self._finalizer = weakref.finalize(self, _close_now, self._slots, os.getpid())

    def take(self, size: int) -> Region | None:
        """Returns a region of at least `size` bytes; None where this request has to go without one.

        Raises:
            InputError: shared memory was insisted on and cannot be had.
        """
        if not self._usable:
            return None
        if not self._cleaned:
            self._cleaned = True
            forget_dead_clients(self._server)
        slot = self._fitting(size) or self._new(size)
        if slot is not None:
            with self._slots.lock:
                self._slots.lent.add(slot)
        return slot

    def give_back(self, slot: Region) -> None:
        """Takes back a region that the server has finished with."""
        with self._slots.lock:
            self._slots.lent.discard(slot)
            self._slots.idle.append(slot)

    def drop(self, slot: Region) -> None:
        """Takes back a region that the server may still write to: it is never used again.

        It is closed later: a server that is slow to answer would otherwise delay the caller for each region.
        """
        with self._slots.lock:
            self._slots.lent.discard(slot)
            self._slots.dropped.append(slot)

    def distrust(self, slot: Region) -> None:
        """Takes back a region that the server should have written to, and has not: it is not the same memory.

        From then on requests go without shared memory, unless it was insisted on.
        """
        self.drop(slot)
        if self._wanted is None:
            self._usable = False
            self._tell("the server does not write to this machine's memory")

    def forget(self) -> None:
        """Drops all idle regions, as after a server's restart."""
        self.tidy(0)

    def tidy(self, keep: int) -> None:
        """Closes what was dropped, and of the idle regions all but the `keep` smallest."""
        with self._slots.lock:
            self._slots.idle.sort(key=lambda region: region.size)
            self._slots.dropped += self._slots.idle[keep:]
            del self._slots.idle[keep:]
        _close_dropped(self._slots)

    def can_share(self) -> bool:
        """Tries with a small region whether memory can be shared."""
        region = self.take(4096)
        if region is not None:
            self.drop(region)
        return region is not None

    def close(self) -> None:
        """Closes all regions; waits a little for the server to let go of cancelled work."""
        self._finalizer.detach()
        self.forget()
        deadline = time.monotonic() + RELEASE_TIMEOUT_S
        while self._slots.dropped and time.monotonic() < deadline:
            time.sleep(POLL_S)
            _close_dropped(self._slots, at_the_end=True)
        self._leave()

    def abandon(self) -> None:
        """Lets go of all regions without a word to the server: after a fork they are the parent process's."""
        self._finalizer.detach()
        self._slots = _Slots()

    def _leave(self) -> None:
        with self._slots.lock:
            left, self._slots.dropped = self._slots.dropped, []
        for region in left:
            region.leave()

    def _fitting(self, size: int) -> Region | None:
        """The smallest idle region of at least `size` bytes; without one, another makes room for it."""
        with self._slots.lock:
            fitting = [region for region in self._slots.idle if region.size >= size]
            if fitting:
                best = min(fitting, key=lambda region: region.size)
                self._slots.idle.remove(best)
                return best
            if self._slots.idle:
                smallest = min(self._slots.idle, key=lambda region: region.size)
                self._slots.idle.remove(smallest)
                self._slots.dropped.append(smallest)
        return None

    def _new(self, size: int) -> Region | None:
        """A new region; None where there is none to be had, or the server is gone."""
        from tritonclient.utils import InferenceServerException

        _close_dropped(self._slots)
        if time.monotonic() < self._try_again_at:
            return None
        try:
            return self._mapped(size)
        except OSError as error:
            self._refuse_if_wanted(error)
            self._try_again_at = time.monotonic() + RETRY_S
            self._tell(str(error))
        except InferenceServerException as error:
            self._refuse_if_wanted(error)
            self._usable = False
            if classify(error.status(), error.message()) is Fault.DENIED:
                self._tell("it shares memory with its own user alone")
                return None
            log.info("%s maps no memory of this machine (%s); tiles go through gRPC", self._url, error)
        return None

    def _mapped(self, size: int) -> Region | None:
        """A new region; None where the server is gone: sending the request will tell."""
        from tritonclient.utils import InferenceServerException

        try:
            return Region(self._server, size)
        except InferenceServerException:
            # A server that answers after all may have been restarted at this very moment: it is asked once more.
            return Region(self._server, size) if self._server.server_is_live() else None

    def _refuse_if_wanted(self, error: Exception) -> None:
        if self._wanted:
            raise InputError(
                f"--shared-memory was asked for, but {self._url} and this process cannot share memory ({error}); "
                "leave it out to send tiles through gRPC"
            ) from None

    def _tell(self, reason: str) -> None:
        """Says once that tiles go through gRPC."""
        if not self._told:
            self._told = True
            log.warning("no memory is shared with %s (%s); tiles go through gRPC", self._url, reason)


def _close_dropped(slots: _Slots, at_the_end: bool = False) -> None:
    """Closes what was dropped and is no longer in use.

    A server that is silent is not asked for every region. Those that it has not answered for take no memory here, and
    it is asked for them once more `at_the_end`.
    """
    with slots.lock:
        closing, slots.dropped = slots.dropped, []
    until = time.monotonic() + shared_memory.UNMAP_TIMEOUT_S
    for region in closing:
        if time.monotonic() >= until:
            region.leave()
        elif (at_the_end or not region.left) and region.close():
            continue
        with slots.lock:
            slots.dropped.append(region)


def _close_now(slots: _Slots, process: int) -> None:
    """Closes what a pool that nobody closed has left, at the interpreter's end at the latest."""
    if os.getpid() == process:  # after a fork they are the parent process's
        slots.dropped += [*slots.idle, *slots.lent]
        slots.idle.clear()
        slots.lent.clear()
        _close_dropped(slots, at_the_end=True)
        for region in slots.dropped:
            region.leave()
