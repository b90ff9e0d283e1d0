"""Connects to a Triton server's gRPC service: addresses, TLS, headers, deadlines, the key of a server of one's own.

Knows nothing of models or tiles.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import ssl
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from voxtile.errors import InputError
from voxtile.io.plain_file import check_plain_file

CHANNEL = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),  # the default, two minutes, is longer than any restart of a server
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.use_local_subchannel_pool", 1),
)


ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^\s:/\[\]]+):(\d{1,5})")
OTHER_ADDRESS = re.compile(r"(dns|unix|unix-abstract|ipv4|ipv6|xds):.+")
"""gRPC's other forms of an address, which name what they are."""

KEYS = Path("/dev/shm")
KEY_HEADER = "triton-grpc-protocol-voxtile"
KEY_TEXT = re.compile(r"[0-9a-f]{32}")
"""Where an embedded server leaves its key, what a call carries it in, and what it looks like."""

HEADER_NAME = re.compile(r"[0-9a-z_.-]+")
HEADER_VALUE = re.compile(r"[ -~]*")
"""What gRPC sends as a header: a name in lower case, and printable ASCII."""


@dataclass(frozen=True)
class TlsConfig:
    """An encrypted connection. All files are PEM.

    Attributes:
        ca: the certificates of the authorities that may sign the server's; None for those that the system trusts
            (or that the environment variable SSL_CERT_FILE names).
        certificate: this client's certificate with its chain, where the server asks for one.
        key: the private key of `certificate`.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            given, missing = ("certificate", "key") if self.key is None else ("key", "certificate")
            raise InputError(
                f"TLS: expected a client's certificate and its key, found only the {given}; give the {missing} too"
            )

    def check_files(self) -> None:
        """Checks that those files that are there can be read twice. Raises InputError for a pipe or a folder."""
        for path in (self.ca, self.certificate, self.key):
            if path is not None and path.exists():
                check_plain_file(path, "PEM")


@dataclass(frozen=True)
class ConnectionConfig:
    """How to reach a server.

    Attributes:
        tls: none for plain text.
        headers: sent with every call, for example a token. Names are in lower case.
        shared_memory: whether tiles go through shared memory; None for: where the server is on this machine.
        compression: the compression of tiles on the wire; None for none.
        deadline_s: seconds that one request may take.

    Raises:
        InputError: a header that gRPC cannot send, or a deadline that no request could keep.
    """

    tls: TlsConfig | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    shared_memory: bool | None = None
    compression: Literal["gzip", "deflate"] | None = None
    deadline_s: float = 300.0

    def __post_init__(self) -> None:
        for name, value in self.headers.items():
            _check_header(name, value)
        if not 0 < self.deadline_s < math.inf:
            raise InputError(f"expected --timeout above 0 seconds, found {self.deadline_s:g}")


def connect(url: str, connection: ConnectionConfig) -> Any:
    """Makes a client for the server at `url`; it connects with its first call.

    Args:
        url: HOST:PORT of the server's gRPC service.
        connection: how to reach it.

    Returns:
        A tritonclient.grpc.InferenceServerClient.

    Raises:
        InputError: the address is none, or a TLS file cannot be used.
    """
    from tritonclient.grpc import InferenceServerClient

    _check_address(url)
    credentials = None if connection.tls is None else _credentials(connection.tls)
    return InferenceServerClient(url, creds=credentials, channel_args=list(CHANNEL))


def is_local(url: str) -> bool:
    """Whether `url` names this machine."""
    host = url.rpartition(":")[0].strip("[]")
    return host in ("localhost", "::1") or host.startswith(("127.", "unix:"))


def control_headers(url: str, connection: ConnectionConfig) -> dict[str, str]:
    """The headers of a call that sends no tiles: what the user gives goes before the key that is found."""
    return {**local_key(url), **connection.headers}


def local_key(url: str) -> dict[str, str]:
    """The header with the key of the embedded server that this user runs at `url` on this machine; empty without one.

    The server leaves it in a file of the memory that it shares, under its port. Files of other users are not read: they
    could hold anything. The key goes to no other machine.
    """
    if not is_local(url):
        return {}
    for file in sorted(KEYS.glob(f"voxtile_*_key-{_port(url)}"), key=_modified, reverse=True):
        with contextlib.suppress(OSError, ValueError):
            key = _own_text(file)
            if KEY_TEXT.fullmatch(key):
                return {KEY_HEADER: key}
    return {}


def _port(url: str) -> str:
    """The port as digits; a pattern of files must hold nothing else."""
    port = url.rpartition(":")[2]
    return port if port.isdecimal() else ""


def _modified(file: Path) -> int:
    """When a file was written; a server that died may have left one under the same port."""
    try:
        return file.lstat().st_mtime_ns
    except OSError:
        return 0


def _own_text(file: Path) -> str:
    """The beginning of a plain file of this user; OSError for anything else."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise PermissionError(f"{file} is no key of ours")
        return os.read(descriptor, 64).decode("ascii")
    finally:
        os.close(descriptor)


def _check_address(url: str) -> None:
    """Raises InputError for an address that gRPC would misread: without a port it takes 443, modulo 65536 too large."""
    found = ADDRESS.fullmatch(url)
    if OTHER_ADDRESS.fullmatch(url) or (found and 0 < int(found[2]) < 65536):
        return
    raise InputError(f"expected HOST:PORT of a server's gRPC service, such as localhost:8001, found {url!r}")


def _check_header(name: str, value: str) -> None:
    """Raises InputError for what gRPC cannot send. The value, often a secret, is not repeated."""
    if not HEADER_NAME.fullmatch(name) or name.endswith("-bin"):
        raise InputError(
            f"expected a header's name of a-z, 0-9, _, - and . that does not end in -bin, found {name!r}; "
            "names are sent in lower case"
        )
    if not HEADER_VALUE.fullmatch(value):
        raise InputError(f"header {name!r}: expected a value of printable ASCII, found other characters in it")


def _credentials(tls: TlsConfig) -> Any:
    import grpc

    tls.check_files()
    try:
        roots = _system_roots() if tls.ca is None else tls.ca.read_bytes()
        key = None if tls.key is None else tls.key.read_bytes()
        chain = None if tls.certificate is None else tls.certificate.read_bytes()
    except OSError as error:
        raise InputError(f"TLS: a file cannot be read ({error})") from None
    _check_pem(tls, roots)
    return grpc.ssl_channel_credentials(roots, key, chain)


def _check_pem(tls: TlsConfig, roots: bytes | None) -> None:
    """Raises InputError for TLS files that are not what they are given as; gRPC would say that no server answers."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if tls.ca is not None:
        try:
            context.load_verify_locations(cadata=(roots or b"").decode("ascii"))
        except (ssl.SSLError, ValueError):
            raise InputError(f"{tls.ca}: expected the certificates of authorities as PEM, found none") from None
    if tls.certificate is not None:
        try:
            context.load_cert_chain(tls.certificate, tls.key, password="")  # no question on the terminal
        except (ssl.SSLError, ValueError):
            raise InputError(
                f"{tls.certificate}, {tls.key}: expected a certificate and its private key without a password, both "
                "as PEM, found something else, or a key of another certificate"
            ) from None


def _system_roots() -> bytes | None:
    """The system's trusted certificates as PEM; None, for gRPC's own list, where the system has none.

    gRPC would take its own list where it is given none, which lacks what an administrator has added to the system.
    """
    file = ssl.get_default_verify_paths().cafile
    if file is not None:
        return Path(file).read_bytes()
    found = ssl.create_default_context().get_ca_certs(binary_form=True)
    return "".join(map(ssl.DER_cert_to_PEM_cert, found)).encode() or None
