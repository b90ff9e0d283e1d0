"""Ports: free ones are found, and those that cannot be had are refused by name."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from voxtile_server.errors import ServerError
from voxtile_server.process import ports


def test_free_ports_are_different_and_free() -> None:
    settled = ports.settle("127.0.0.1", {"--a": 0, "--b": 0, "--c": 0})
    assert len(set(settled.values())) == 3
    assert ports.settle("127.0.0.1", settled) == settled


def test_a_taken_port_is_named_with_its_option() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for host in ("127.0.0.1", "0.0.0.0"):
            with pytest.raises(ServerError, match=f"--grpc-port: port {port} of {host} is taken"):
                ports.settle(host, {"--http-port": 0, "--grpc-port": port})


@pytest.mark.parametrize(
    ("host", "wanted", "message"),
    [
        ("127.0.0.1", {"--a": 9000, "--b": 9000}, "port 9000 is asked for twice, by --a and --b"),
        ("127.0.0.1", {"--a": 70000}, "--a: expected a port from 0 .* to 65535, got 70000"),
        ("203.0.113.7", {"--a": 0}, "--host: 203.0.113.7 is not an address of this machine"),
        ("no such host", {"--a": 0}, "--host: 'no such host' is not an address of this machine"),
    ],
)
def test_ports_that_cannot_be_are_refused(host: str, wanted: dict[str, int], message: str) -> None:
    with pytest.raises(ServerError, match=message):
        ports.settle(host, wanted)


# Who listens ---------------------------------------------------------------------------------------------------


def test_a_process_listens_where_its_sockets_do_and_nowhere_else() -> None:
    before = ports.listening(os.getpid())
    with (
        socket.create_server(("127.0.0.1", 0)) as four,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as six,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
        socket.socket() as bound,
        socket.create_connection(four.getsockname()) as connected,
    ):
        for one in (datagrams, bound):
            one.bind(("127.0.0.1", 0))
        found = ports.listening(os.getpid()) - before
        assert found == {four.getsockname()[1], six.getsockname()[1]}
        assert connected.getsockname()[1] not in found
    assert ports.listening(os.getpid()) == before


def test_what_another_process_listens_on_is_not_ours() -> None:
    """A port that answers may be another server's, which took it in our place."""
    code = "import socket, sys; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", f"{code}; sys.stdin.read()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        port = int(other.stdout.readline())
        assert ports.listening(other.pid) == {port}
        assert port not in ports.listening(os.getpid())
        other.communicate("", timeout=60)
    assert ports.listening(other.pid) == set()
