"""Connections to a real gRPC server: authorities of one's own and the system's, client certificates, headers."""

from __future__ import annotations

import contextlib
import shutil
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest

from tests.support.commands import run
from tests.support.fake_triton import ROI, FakeTriton
from tests.support.tls_server import Identity, make_authority, make_identity, tls_server
from voxtile import ConnectionConfig, InputError, RemoteNetwork, ServerUnavailable, TlsConfig
from voxtile.triton import connection
from voxtile.triton.endpoint import Endpoint

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")


@dataclass(frozen=True)
class Files:
    """An authority, and a server and a client that it has signed."""

    authority: Identity
    server: Identity
    client: Identity


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("tls")
    authority = make_authority(folder)
    return Files(authority, make_identity(folder, "server", authority), make_identity(folder, "client", authority))


def ask(url: str, connection: ConnectionConfig) -> None:
    with contextlib.closing(Endpoint(url, connection)) as endpoint:
        endpoint.check_live()


@needs_openssl
def test_an_authority_of_ones_own(files: Files) -> None:
    with tls_server(files.server) as server:
        ask(server.url, ConnectionConfig(TlsConfig(ca=files.authority.certificate), {"token": "abc"}))
    assert server.headers[0]["token"] == "abc"


@needs_openssl
def test_the_systems_authorities(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment variable adds a file to what the system trusts."""
    with tls_server(files.server) as server:
        with pytest.raises(ServerUnavailable, match="no Triton server answers"):
            ask(server.url, ConnectionConfig(TlsConfig()))
        monkeypatch.setenv("SSL_CERT_FILE", str(files.authority.certificate))
        ask(server.url, ConnectionConfig(TlsConfig()))
    assert len(server.headers) == 1


@needs_openssl
def test_a_server_that_asks_for_a_certificate(files: Files) -> None:
    ca, client = files.authority.certificate, files.client
    with tls_server(files.server, clients_signed_by=files.authority) as server:
        with pytest.raises(ServerUnavailable):
            ask(server.url, ConnectionConfig(TlsConfig(ca)))
        ask(server.url, ConnectionConfig(TlsConfig(ca, client.certificate, client.key)))


@needs_openssl
def test_plain_text_is_not_sent_to_a_server_with_tls_by_surprise(files: Files) -> None:
    with tls_server(files.server) as server, pytest.raises(ServerUnavailable):
        ask(server.url, ConnectionConfig())


@needs_openssl
def test_a_server_without_tls_where_it_is_expected(files: Files) -> None:
    with FakeTriton() as plain, pytest.raises(ServerUnavailable, match=r"no Triton server answers.*--tls"):
        ask(plain.url, ConnectionConfig(TlsConfig(ca=files.authority.certificate)))
    assert not plain.calls


@needs_openssl
def test_tiles_go_through_tls_and_to_no_server_without(files: Files) -> None:
    """Of two servers, one does not encrypt: it gets neither tile nor token."""
    credentials = grpc.ssl_server_credentials(
        [(files.server.key.read_bytes(), files.server.certificate.read_bytes())], None, False
    )
    connection = ConnectionConfig(TlsConfig(ca=files.authority.certificate), {"token": "abc"})
    tile = np.random.default_rng(1).normal(size=(3, 1, *ROI)).astype(np.float32)
    with FakeTriton() as plain, FakeTriton(credentials=credentials) as encrypted:
        with RemoteNetwork([plain.url, encrypted.url], "model", connection=connection) as network:
            np.testing.assert_array_equal(network(tile), tile)
        assert not plain.calls
        assert {call.headers.get("token") for call in encrypted.calls} == {"abc"}


@needs_openssl
def test_the_commands_options(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server lists no models, which a command gets to know only where TLS was agreed on."""
    ca = files.authority.certificate
    with tls_server(files.server) as server:
        assert "Method not found" not in run("doctor", "--url", server.url).output
        assert "Method not found" not in run("doctor", "--url", server.url, "--tls").output
        assert "Method not found" in run("doctor", "--url", server.url, "--tls-ca", ca).output
        monkeypatch.setenv("SSL_CERT_FILE", str(ca))
        assert "Method not found" in run("doctor", "--url", server.url, "--tls").output


@pytest.mark.parametrize("one", ["certificate", "key"])
def test_a_certificate_and_its_key_go_together(one: str) -> None:
    with pytest.raises(InputError, match=rf"found only the {one}; give the (key|certificate) too"):
        TlsConfig(**{one: Path("file.pem")})


def test_a_certificate_without_its_key_ends_the_command_with_one_line(tmp_path: Path) -> None:
    result = run("models", "--tls-cert", tmp_path / "client.pem")
    assert result.exit_code == 2
    assert result.stderr.startswith("voxtile: TLS: expected a client's certificate and its key")


@needs_openssl
@pytest.mark.parametrize("text", ["", "no certificate", "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n"])
def test_authorities_that_are_none_are_not_taken_for_a_server_that_is_gone(tmp_path: Path, text: str) -> None:
    (tmp_path / "ca.pem").write_text(text)
    with pytest.raises(InputError, match=r"ca\.pem: expected the certificates of authorities as PEM"):
        ask("127.0.0.1:9", ConnectionConfig(TlsConfig(ca=tmp_path / "ca.pem")))


@needs_openssl
def test_a_key_of_another_certificate(files: Files) -> None:
    tls = TlsConfig(files.authority.certificate, files.client.certificate, files.server.key)
    with pytest.raises(InputError, match="a key of another certificate"):
        ask("127.0.0.1:9", ConnectionConfig(tls))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"TLS: a file cannot be read .*nowhere.pem"):
        Endpoint("localhost:1", ConnectionConfig(TlsConfig(ca=tmp_path / "nowhere.pem")))


# What gRPC would misread or not send ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    ["localhost", "http://localhost:8001", "localhost:0", "localhost:65536", "", ":8001", "a b:1", "[::1]", "h:1/x"],
)
def test_what_is_no_address_is_said_so(url: str) -> None:
    with pytest.raises(
        InputError, match=r"^expected HOST:PORT of a server's gRPC service, such as localhost:8001, found '"
    ):
        Endpoint(url, ConnectionConfig())


@pytest.mark.parametrize(
    "url",
    ["localhost:1", "localhost:65535", "127.0.0.1:9", "[::1]:9", "a-b.c_d:65535", "dns:///localhost:9", "unix:/x"],
)
def test_an_address_may_be_any_that_grpc_knows(url: str) -> None:
    Endpoint(url, ConnectionConfig()).close()


@pytest.mark.parametrize("name", ["Token", "to ken", "töken", "", "token-bin", "a:b"])
def test_a_headers_name_that_grpc_cannot_send(name: str) -> None:
    with pytest.raises(InputError, match="expected a header's name of a-z"):
        ConnectionConfig(headers={name: "abc"})


@pytest.mark.parametrize("value", ["secret\n", "sécret", "secret\x00"])
def test_a_headers_value_that_grpc_cannot_send_is_not_repeated(value: str) -> None:
    with pytest.raises(InputError, match="header 'token': expected a value of printable ASCII") as caught:
        ConnectionConfig(headers={"token": value})
    assert "cret" not in str(caught.value)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_a_deadline_that_no_request_could_keep(seconds: float) -> None:
    with pytest.raises(InputError, match="expected --timeout above 0 seconds"):
        ConnectionConfig(deadline_s=seconds)


def test_the_usual_connection_and_the_least_time() -> None:
    assert ConnectionConfig() == ConnectionConfig(None, {}, None, None, 300.0)
    assert ConnectionConfig(deadline_s=0.001).deadline_s == 0.001


def test_messages_of_any_size_pass_both_ways() -> None:
    """gRPC's own limit is 4 MiB for what is received; a request of a few large tiles is more."""
    tile = np.random.default_rng(1).random((2, 1, 80, 80, 100), np.float32)
    plain = ConnectionConfig(shared_memory=False)
    with FakeTriton(roi_size=[80, 80, 100]) as fake, RemoteNetwork(fake.url, "model", connection=plain) as network:
        np.testing.assert_array_equal(network(tile), tile)


# Certificates ------------------------------------------------------------------------------------------------


@needs_openssl
def test_a_system_without_a_file_of_authorities_may_have_a_folder_or_none(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ssl.create_default_context(cafile=str(files.authority.certificate))
    nothing = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    paths = ssl.get_default_verify_paths()._replace(cafile=None)
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: paths)
    monkeypatch.setattr(ssl, "create_default_context", lambda: folder)
    pem = connection._system_roots()
    assert pem is not None
    assert pem.split() == files.authority.certificate.read_bytes().split()
    monkeypatch.setattr(ssl, "create_default_context", lambda: nothing)
    assert connection._system_roots() is None  # gRPC then has a list of its own


@needs_openssl
def test_a_key_with_a_password_is_refused_and_nobody_is_asked_for_it(files: Files, tmp_path: Path) -> None:
    locked = tmp_path / "locked.key"
    command = ["openssl", "ec", "-in", str(files.client.key), "-aes256", "-passout", "pass:secret", "-out", str(locked)]
    subprocess.run(command, check=True, capture_output=True)
    tls = TlsConfig(files.authority.certificate, files.client.certificate, locked)
    with pytest.raises(InputError) as caught:
        ask("127.0.0.1:9", ConnectionConfig(tls))
    assert str(caught.value).startswith(
        f"{files.client.certificate}, {locked}: expected a certificate and its private key without a password, both as "
    )


@needs_openssl
@pytest.mark.parametrize("text", ["", "no certificate", "\u00e9"])
def test_a_certificate_of_ones_own_that_is_none(files: Files, tmp_path: Path, text: str) -> None:
    (tmp_path / "own.pem").write_text(text)
    tls = TlsConfig(files.authority.certificate, tmp_path / "own.pem", files.client.key)
    with pytest.raises(InputError, match=r"own\.pem, .*: expected a certificate and its private key"):
        ask("127.0.0.1:9", ConnectionConfig(tls))


def test_every_connection_has_the_channels_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without them, gRPC waits up to two minutes before it looks for a server that has started again."""
    given: list[dict[str, object]] = []
    monkeypatch.setattr("tritonclient.grpc.InferenceServerClient", lambda _, **options: given.append(options))
    connection.connect("localhost:8001", ConnectionConfig())
    (options,) = given
    assert dict(options["channel_args"])["grpc.max_reconnect_backoff_ms"] <= 1000  # type: ignore[call-overload]
