"""Chooses and checks ports, and sees on which a process listens; knows nothing of Triton."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from voxtile_server.errors import ServerError

LISTEN = "0A"
"""The state of a socket that listens, in /proc/net/tcp."""


def settle(host: str, wanted: Mapping[str, int]) -> dict[str, int]:
    """A port for each option: the wanted one, or a free one where 0 is wanted.

    Args:
        host: address to listen on.
        wanted: port by the option that sets it, such as {"--http-port": 8000}.

    Returns:
        Port by option.

    Raises:
        ServerError: a port is taken, asked for twice, out of range or not allowed; the text names the option.
    """
    _refuse_twice(wanted)
    with ExitStack() as bound:  # all stay bound until all are chosen, so that no port comes twice
        return {
            option: bound.enter_context(_bound(host, option, port)).getsockname()[1] for option, port in wanted.items()
        }


def _refuse_twice(wanted: Mapping[str, int]) -> None:
    options: dict[int, str] = {}
    for option, port in wanted.items():
        if port and port in options:
            raise ServerError(f"port {port} is asked for twice, by {options[port]} and {option}; change one")
        options[port] = option


def _bound(host: str, option: str, port: int) -> socket.socket:
    if not 0 <= port <= 65535:
        raise ServerError(f"{option}: expected a port from 0 (any free one) to 65535, got {port}")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    except OSError as error:
        raise ServerError(
            f"--host: {host!r} is not an address of this machine ({error.strerror}); try 127.0.0.1"
        ) from error
    bound = socket.socket(family, socket.SOCK_STREAM)
    # A port counts as free although connections of a killed server are still in TIME_WAIT on it.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise ServerError(_why_not(host, option, port, error)) from error
    return bound


def _why_not(host: str, option: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"{option}: port {port} of {host} is taken by another process; choose another, or 0 for any"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"--host: {host} is not an address of this machine; try 127.0.0.1"
    if error.errno == errno.EACCES:
        return f"{option}: this user may not listen on port {port}; choose one from 1024"
    return f"{option}: cannot listen on {host}:{port} ({os.strerror(error.errno or 0)})"


def listening(pid: int) -> set[int]:
    """The ports on which a process of this user listens; empty where it has ended.

    The kernel is asked, and not the ports: what answers there could be another process, or want a certificate.
    """
    try:
        own = {_target(Path(f"/proc/{pid}/fd/{number}")) for number in os.listdir(f"/proc/{pid}/fd")}
        lines = [line.split() for kind in ("tcp", "tcp6") for line in _lines(Path(f"/proc/{pid}/net/{kind}"))]
    except OSError:
        return set()
    # 1 is the local address with its port, 3 the state, 9 the number that the descriptor's link names.
    return {int(one[1].rpartition(":")[2], 16) for one in lines if one[3] == LISTEN and f"socket:[{one[9]}]" in own}


def _target(descriptor: Path) -> str:
    """What a descriptor of another process is open on; empty where it was closed meanwhile."""
    try:
        return os.readlink(descriptor)
    except OSError:
        return ""


def _lines(table: Path) -> list[str]:
    """The lines below the head; none where the machine has no such protocol."""
    return table.read_text(encoding="ascii").splitlines()[1:] if table.exists() else []
