"""A connection that several scans use at once, and that is closed with the last of them once it is out of date."""

from __future__ import annotations

import threading
import weakref

from voxtile.triton.grpc_transport import GrpcTransport


class Shared:
    """A connection. Several threads may use it.

    Args:
        transport: it; closed when it is retired and nobody uses it.
    """

    def __init__(self, transport: GrpcTransport) -> None:
        self.transport = transport
        self._users = 0
        self._retired = False
        self._lock = threading.RLock()  # a user may be found to be gone anywhere

    def borrowed(self) -> Borrowed | None:
        """The connection for one user more; None where it is retired."""
        with self._lock:
            if self._retired:
                return None
            self._users += 1
        return Borrowed(self)

    def retire(self) -> None:
        """Gives it to nobody any more, and closes it when the last user has gone."""
        with self._lock:
            retired, self._retired = self._retired, True
            unused = not retired and self._users == 0
        if unused:
            self.transport.close()

    def give_back(self) -> None:
        """One user has gone."""
        with self._lock:
            self._users -= 1
            unused = self._retired and self._users == 0
        if unused:
            self.transport.close()


class Borrowed:
    """A transport that others use too: closing it gives it back, and so does forgetting it.

    Args:
        shared: what is borrowed; it counts this user already.
    """

    def __init__(self, shared: Shared) -> None:
        transport = shared.transport
        self.model, self.servers, self.infer = transport.model, transport.servers, transport.infer
        self._give_back = weakref.finalize(self, shared.give_back)
        self._give_back.atexit = False

    def close(self) -> None:
        """Gives it back; a second time does nothing."""
        self._give_back()
