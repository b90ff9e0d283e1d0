"""A gRPC server with TLS that answers Triton's question whether it lives, and keeps the headers of its calls."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from tritonclient.grpc import service_pb2


@dataclass(frozen=True)
class Identity:
    """PEM files of a certificate and its key."""

    certificate: Path
    key: Path


@dataclass
class TlsServer:
    """A running server. headers: those of each call so far."""

    url: str
    headers: list[dict[str, Any]] = field(default_factory=list)


def make_authority(folder: Path) -> Identity:
    """A certificate authority of its own."""
    authority = Identity(folder / "ca.pem", folder / "ca.key")
    _openssl(
        "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
        "-subj", "/CN=test authority", "-keyout", authority.key, "-out", authority.certificate,
    )  # fmt: skip
    return authority


def make_identity(folder: Path, name: str, authority: Identity) -> Identity:
    """A certificate for localhost that `authority` has signed."""
    identity, request = Identity(folder / f"{name}.pem", folder / f"{name}.key"), folder / f"{name}.csr"
    extensions = folder / f"{name}.ext"
    extensions.write_text("subjectAltName = DNS:localhost, IP:127.0.0.1\n")
    _openssl(
        "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/CN={name}",
        "-keyout", identity.key, "-out", request,
    )  # fmt: skip
    _openssl(
        "x509", "-req", "-in", request, "-CA", authority.certificate, "-CAkey", authority.key, "-CAcreateserial",
        "-days", "2", "-extfile", extensions, "-out", identity.certificate,
    )  # fmt: skip
    return identity


@contextmanager
def tls_server(identity: Identity, clients_signed_by: Identity | None = None) -> Iterator[TlsServer]:
    """Runs a server; with `clients_signed_by` it asks clients for a certificate."""
    pool = ThreadPoolExecutor(2)
    server = grpc.server(pool)
    pair = (identity.key.read_bytes(), identity.certificate.read_bytes())
    authority = clients_signed_by.certificate.read_bytes() if clients_signed_by else None
    credentials = grpc.ssl_server_credentials([pair], authority, require_client_auth=authority is not None)
    running = TlsServer(f"localhost:{server.add_secure_port('localhost:0', credentials)}")

    def live(_: Any, context: Any) -> Any:
        running.headers.append({entry.key: entry.value for entry in context.invocation_metadata()})
        return service_pb2.ServerLiveResponse(live=True)

    handler = grpc.unary_unary_rpc_method_handler(
        live, service_pb2.ServerLiveRequest.FromString, service_pb2.ServerLiveResponse.SerializeToString
    )
    service = "inference.GRPCInferenceService"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"ServerLive": handler}),))
    server.start()
    try:
        yield running
    finally:
        server.stop(None).wait()
        pool.shutdown()


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
