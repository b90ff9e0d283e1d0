"""A relay between a client and a server that breaks connections after some bytes of the server's answers."""

from __future__ import annotations

import contextlib
import itertools
import socket
import ssl
import threading
from collections.abc import Iterator

CHUNK = 1 << 14


@contextlib.contextmanager
def tcp_relay(
    port: int, after: int | None, times: int | None = None, skip: int = 0, tls: ssl.SSLContext | None = None
) -> Iterator[int]:
    """Relays to `port` of this machine; gives its own port.

    Args:
        port: where the server listens.
        after: bytes of the server that pass before the connection is closed; None for all.
        times: how many connections are broken; None for each.
        skip: how many connections pass before the first one that is broken.
        tls: encrypts the client's side.
    """
    listening = socket.create_server(("127.0.0.1", 0))
    numbers = itertools.count()
    open_sockets: list[socket.socket] = []

    def serve(client: socket.socket, number: int) -> None:
        broken = number >= skip and (times is None or number < skip + times)
        if tls is not None:
            try:
                client = tls.wrap_socket(client, server_side=True)
            except OSError:  # the client does not trust it, or shows no certificate
                client.close()
                return
        with client, socket.create_connection(("127.0.0.1", port)) as server:
            open_sockets.extend((client, server))
            back = threading.Thread(target=_pump, args=(server, client, after if broken else None), daemon=True)
            back.start()
            _pump(client, server, None)
            back.join()

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listening.accept()
                threading.Thread(target=serve, args=(client, next(numbers)), daemon=True).start()

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    try:
        yield listening.getsockname()[1]
    finally:
        with contextlib.suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        for one in open_sockets:
            _close(one)
        accepting.join()


def _pump(source: socket.socket, target: socket.socket, limit: int | None) -> None:
    """Passes bytes on until one side ends, or `limit` bytes have passed."""
    passed = 0
    with contextlib.suppress(OSError):
        while limit is None or passed < limit:
            data = source.recv(CHUNK if limit is None else min(CHUNK, limit - passed))
            if not data:
                break
            target.sendall(data)
            passed += len(data)
    _close(source)
    _close(target)


def _close(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
