"""Ports: free ones are found, and those that cannot be had are refused by name."""

from __future__ import annotations

import socket

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
