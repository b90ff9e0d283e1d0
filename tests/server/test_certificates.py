"""Certificates of the embedded server: what cannot be used is told before tritonserver starts, in one line."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.support.tls_server import Identity, make_authority, make_identity
from tests.support.waiting import in_time
from voxtile_server.certificates import certificate_options
from voxtile_server.errors import ServerError
from voxtile_server.options import ServerOptions

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Identity, Identity, Identity]:
    """An authority, and two that it has signed."""
    folder = tmp_path_factory.mktemp("certificates")
    authority = make_authority(folder)
    return authority, make_identity(folder, "one", authority), make_identity(folder, "two", authority)


def test_paths_are_whole_since_tritonserver_runs_in_another_folder(
    made: tuple[Identity, Identity, Identity], monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, one, _ = made
    monkeypatch.chdir(one.key.parent)
    options = certificate_options(Path("one.pem"), Path("one.key"), Path("ca.pem"))
    assert options == [
        "--grpc-use-ssl=true", f"--grpc-server-cert={one.certificate}", f"--grpc-server-key={one.key}",
        "--grpc-use-ssl-mutual=true", f"--grpc-root-cert={authority.certificate}",
    ]  # fmt: skip
    assert certificate_options(one.certificate, one.key, None) == options[:3]
    assert certificate_options(None, None, None) == []


def test_a_file_that_cannot_be_used_is_told(made: tuple[Identity, Identity, Identity], tmp_path: Path) -> None:
    authority, one, two = made
    text = tmp_path / "text"
    text.write_text("no certificate")
    os.mkfifo(tmp_path / "pipe")
    for files, message in (
        ((tmp_path / "missing", one.key, None), "--tls-certificate: cannot read .*missing"),
        ((one.certificate, tmp_path, None), "--tls-key: cannot read .*directory"),
        ((one.certificate, one.key, tmp_path / "missing"), "--tls-client-ca: cannot read"),
        ((one.certificate, tmp_path / "pipe", None), "--tls-key: expected a plain file, found .*pipe"),
        ((one.certificate, two.key, None), "a key of another certificate"),
        ((one.key, one.certificate, None), "expected a certificate and its private key"),
        ((text, one.key, None), "expected a certificate and its private key"),
        ((one.certificate, one.key, text), "expected certificates of authorities as PEM, found none in"),
        ((one.certificate, one.key, authority.key), "expected certificates of authorities as PEM, found none in"),
    ):
        with in_time(), pytest.raises(ServerError, match=message) as refused:
            certificate_options(*files)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tls_certificate": Path("a")}, "--tls-certificate needs --tls-key"),
        ({"tls_key": Path("a")}, "--tls-key needs --tls-certificate"),
        ({"tls_client_ca": Path("a")}, "--tls-client-ca needs the server's own"),
        ({"tls_certificate": Path("a"), "tls_key": Path("b"), "http_port": 0}, "leave one of them out"),
    ],
)
def test_options_that_cannot_go_together_are_refused(options: dict[str, Path], message: str) -> None:
    with pytest.raises(ServerError, match=message):
        ServerOptions(**options)  # type: ignore[arg-type]
