"""Certificates for gRPC: checked, then as tritonserver's options. It knows nothing of how a server is started."""

from __future__ import annotations

import ssl
from pathlib import Path

from voxtile_server.errors import ServerError


def check_together(certificate: Path | None, key: Path | None, client_ca: Path | None, http_port: int | None) -> None:
    """Raise where options cannot go together.

    Raises:
        ServerError: what is missing, or too much.
    """
    if (certificate is None) != (key is None):
        given, missing = ("--tls-certificate", "--tls-key") if key is None else ("--tls-key", "--tls-certificate")
        raise ServerError(f"{given} needs {missing}; give both")
    if client_ca is not None and certificate is None:
        raise ServerError("--tls-client-ca needs the server's own --tls-certificate and --tls-key; give all three")
    if certificate is not None and http_port is not None:
        raise ServerError(
            "--http-port opens a door without a certificate beside --tls-certificate; leave one of them out"
        )


def certificate_options(certificate: Path | None, key: Path | None, client_ca: Path | None) -> list[str]:
    """Options of tritonserver that encrypt gRPC; none without a certificate.

    Args:
        certificate: PEM, the server's certificate with its chain.
        key: PEM, its private key, without a password.
        client_ca: PEM, the authorities whose clients are let in; None lets everybody in.

    Raises:
        ServerError: a file that cannot be used. tritonserver would end, or let nobody in, without a word.
    """
    if certificate is None or key is None:
        return []
    _check(certificate, key, client_ca)
    options = ["--grpc-use-ssl=true", f"--grpc-server-cert={certificate.absolute()}",
               f"--grpc-server-key={key.absolute()}"]  # fmt: skip
    if client_ca is not None:
        options += ["--grpc-use-ssl-mutual=true", f"--grpc-root-cert={client_ca.absolute()}"]
    return options


def _check(certificate: Path, key: Path, client_ca: Path | None) -> None:
    for option, path in (("certificate", certificate), ("key", key), ("client-ca", client_ca)):
        try:
            if path is not None and path.exists() and not (path.is_file() or path.is_dir()):
                raise ServerError(f"--tls-{option}: expected a plain file, found {path}, a pipe or a device")
            if path is not None:
                path.read_bytes()
        except OSError as error:
            raise ServerError(f"--tls-{option}: cannot read {path} ({error.strerror})") from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, password="")  # no question on the terminal
    except (ssl.SSLError, ValueError):
        raise ServerError(
            "--tls-certificate, --tls-key: expected a certificate and its private key without a password, both as PEM, "
            f"found something else in {certificate} or {key}, or a key of another certificate"
        ) from None
    try:
        if client_ca is not None:
            context.load_verify_locations(client_ca)
    except (ssl.SSLError, ValueError):
        raise ServerError(
            f"--tls-client-ca: expected certificates of authorities as PEM, found none in {client_ca}"
        ) from None
