"""Calls that segment no scan need a key, which the same user's client finds; HTTP is off, and weak when it is on."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from tests.support.served_processes import doubled, eventually, regions, shm_prefix
from voxtile import ConnectionConfig
from voxtile.triton import connection
from voxtile.triton.connection import KEY_HEADER, local_key
from voxtile.triton.endpoint import Endpoint
from voxtile_server import embedded
from voxtile_server.embedded import EmbeddedServer
from voxtile_server.errors import ServerError
from voxtile_server.options import ServerOptions
from voxtile_server.restricted import CALLS, HEADER, NAME, restriction_options

FORM = "application/x-www-form-urlencoded"
"""The content type that curl --data-binary and urllib name by default."""

Ask = Callable[[triton.InferenceServerClient, dict[str, str]], Any]
RESTRICTED: dict[str, Ask] = {
    "list the repository": lambda client, headers: client.get_model_repository_index(headers=headers),
    "load": lambda client, headers: client.load_model("double", headers=headers),
    "load with a config": lambda client, headers: client.load_model("double", config="{}", headers=headers),
    "unload": lambda client, headers: client.unload_model("double", headers=headers),
    "list memory": lambda client, headers: client.get_system_shared_memory_status(headers=headers),
    "map memory": lambda client, headers: client.register_system_shared_memory("a", "/a", 8, headers=headers),
    "unmap memory": lambda client, headers: client.unregister_system_shared_memory("a", headers=headers),
    "list memory of GPUs": lambda client, headers: client.get_cuda_shared_memory_status(headers=headers),
    "map memory of a GPU": lambda client, headers: client.register_cuda_shared_memory("a", b"", 0, 8, headers=headers),
    "unmap memory of a GPU": lambda client, headers: client.unregister_cuda_shared_memory("a", headers=headers),
    "read log settings": lambda client, headers: client.get_log_settings(headers=headers),
    "write a log": lambda client, headers: client.update_log_settings({"log_file": "/tmp/a"}, headers=headers),
    "read trace settings": lambda client, headers: client.get_trace_settings(headers=headers),
    "write a trace": lambda client, headers: client.update_trace_settings("double", {}, headers=headers),
}
OPEN: dict[str, Ask] = {
    "live": lambda client, headers: client.is_server_live(headers=headers),
    "ready": lambda client, headers: client.is_model_ready("double", headers=headers),
    "metadata": lambda client, headers: client.get_model_metadata("double", headers=headers),
    "config": lambda client, headers: client.get_model_config("double", headers=headers),
    "statistics": lambda client, headers: client.get_inference_statistics(headers=headers),
}


def refusal(server: EmbeddedServer, ask: Ask, headers: dict[str, str]) -> str:
    """What the server says against a call; empty where it says nothing against it."""
    with triton.InferenceServerClient(server.grpc_url) as client:
        try:
            ask(client, headers)
        except InferenceServerException as error:
            return str(error.message())
    return ""


@pytest.mark.parametrize("ask", RESTRICTED.values(), ids=RESTRICTED)
@pytest.mark.parametrize("headers", [{}, {HEADER: "0" * 32}, {NAME: "key"}, {HEADER: ""}], ids=str)
def test_without_the_key_a_call_is_refused(server: EmbeddedServer, ask: Ask, headers: dict[str, str]) -> None:
    headers = {name: server.key_header[HEADER] if value == "key" else value for name, value in headers.items()}
    assert "This protocol is restricted" in refusal(server, ask, headers)


@pytest.mark.parametrize("ask", RESTRICTED.values(), ids=RESTRICTED)
def test_with_the_key_a_call_is_let_in(server: EmbeddedServer, ask: Ask) -> None:
    """What it may then be refused for is another thing, such as the mode of model control."""
    if ask is not RESTRICTED["write a log"]:  # it would really write there
        assert "restricted" not in refusal(server, ask, server.key_header)


@pytest.mark.parametrize("ask", OPEN.values(), ids=OPEN)
def test_what_a_segmentation_needs_is_open(server: EmbeddedServer, ask: Ask) -> None:
    assert refusal(server, ask, {}) == ""
    assert doubled(server.grpc_url)


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "systemsharedmemory/status"), ("POST", "systemsharedmemory/region/a/register"),
     ("GET", "cudasharedmemory/status"), ("POST", "repository/index"), ("POST", "repository/models/double/load"),
     ("POST", "repository/models/double/unload"), ("GET", "logging"), ("POST", "logging"), ("GET", "trace/setting"),
     ("POST", "trace/setting")],
)  # fmt: skip
def test_by_http_the_same_calls_are_refused(server: EmbeddedServer, method: str, path: str) -> None:
    request = urllib.request.Request(f"http://{server.http_url}/v2/{path}", b"{}" if method == "POST" else None)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    assert refused.value.code == 403
    refused.value.close()
    request.add_header(NAME, server.key_header[HEADER])
    if method == "GET":
        with urllib.request.urlopen(request) as answer:
            assert answer.status == 200


# The key -------------------------------------------------------------------------------------------------------


def key_file(server: EmbeddedServer) -> Path:
    [file] = Path("/dev/shm").glob(f"{shm_prefix(server.pid)}key-*")
    return file


def test_the_key_is_this_users_alone_and_stands_in_no_log(server: EmbeddedServer) -> None:
    status = key_file(server).stat()
    assert (status.st_mode & 0o777, status.st_uid) == (0o600, os.geteuid())
    assert server.key_header[HEADER] == key_file(server).read_text()
    assert server.key_header[HEADER] not in server.log_file.read_text()


def test_a_server_that_is_started_again_has_another_key_and_leaves_none(repository: Path) -> None:
    others = set(regions(os.getpid()))
    server = EmbeddedServer(repository, ServerOptions(ready_timeout_s=120)).start()
    try:
        first = server.key_header
        assert local_key(server.grpc_url) == first
        server.kill()
        assert local_key(server.grpc_url) == {}
        server.start()
        assert local_key(server.grpc_url) == server.key_header != first
    finally:
        server.kill()
    assert set(regions(os.getpid())) == others


@pytest.mark.parametrize(
    "url", ["{port}.example.org:{port}", "10.0.0.1:{port}", "[fe80::1]:{port}", "localhost.example.org:{port}"]
)
def test_the_key_goes_to_no_other_machine(server: EmbeddedServer, url: str) -> None:
    port = server.grpc_url.rpartition(":")[2]
    assert local_key(f"localhost:{port}") == local_key(f"[::1]:{port}") == server.key_header
    assert local_key(url.format(port=port)) == {}


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of /dev/shm."""
    monkeypatch.setattr(connection, "KEYS", tmp_path)
    return tmp_path


GOOD = "0123456789abcdef" * 2


@pytest.mark.parametrize("port", ["*", "?", "[0-9]", "../x", "", "²"])
def test_an_address_is_no_pattern(keys: Path, port: str) -> None:
    (keys / "voxtile_1_a_key-8001").write_text(GOOD)
    assert local_key(f"localhost:{port}") == {}
    assert local_key("localhost:8001") == {KEY_HEADER: GOOD}


@pytest.mark.parametrize("text", [b"", b"x" * 32, GOOD.encode() + b"\n", GOOD.encode() + b"0", b"\xff" * 32])
def test_what_is_no_key_is_not_sent(keys: Path, text: bytes) -> None:
    (keys / "voxtile_1_a_key-8001").write_bytes(text)
    assert local_key("localhost:8001") == {}


@pytest.mark.parametrize("kind", ["link", "dangling", "folder", "pipe", "another user's"])
def test_what_is_no_file_of_ours_is_not_read_and_stops_nothing(
    keys: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = keys / "voxtile_2_b_key-8001"
    (keys / "secret").write_text(GOOD)
    match kind:
        case "link":
            path.symlink_to(keys / "secret")
        case "dangling":
            path.symlink_to("/nowhere")
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case _:
            path.write_text(GOOD)
            monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert local_key("localhost:8001") == {}


def test_of_two_keys_under_one_port_the_later_counts(keys: Path) -> None:
    """A server that died with its supervisor has left the other."""
    for name, key, when in (("voxtile_9_old", "0" * 32, 1), ("voxtile_1_new", GOOD, 2)):
        (keys / f"{name}_key-8001").write_text(key)
        os.utime(keys / f"{name}_key-8001", (when, when))
    assert local_key("localhost:8001") == {KEY_HEADER: GOOD}


def test_a_header_of_the_users_goes_before_the_key_that_is_found(keys: Path) -> None:
    (keys / "voxtile_1_a_key-8001").write_text(GOOD)
    own = ConnectionConfig(headers={KEY_HEADER: "mine", "other": "1"})
    assert connection.control_headers("localhost:8001", own) == {KEY_HEADER: "mine", "other": "1"}


# The client ----------------------------------------------------------------------------------------------------


def shares(url: str, config: ConnectionConfig = ConnectionConfig()) -> bool:  # noqa: B008 - frozen
    with contextlib.closing(Endpoint(url, config)) as endpoint:
        return endpoint.can_share_memory()


def test_the_client_shares_memory_and_without_the_key_goes_on_and_says_so(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert shares(server.grpc_url)
    monkeypatch.setattr(connection, "KEYS", tmp_path)  # as for another user
    with caplog.at_level(logging.WARNING):
        assert not shares(server.grpc_url)
    [line] = caplog.messages
    assert "its own user alone" in line
    assert "tiles go through gRPC" in line
    assert shares(server.grpc_url, ConnectionConfig(headers=server.key_header))


def test_without_the_key_the_client_lists_what_is_loaded(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        with contextlib.closing(Endpoint(server.grpc_url, ConnectionConfig())) as endpoint:
            assert endpoint.models() == [("double", "READY")]
        monkeypatch.setattr(connection, "KEYS", tmp_path)


# What the user restricts himself -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ((), CALLS),
        (("--grpc-restricted-protocol=trace:k=v",), ("shared-memory", "model-repository", "logging")),
        (("--grpc-restricted-protocol", "health,trace,logging:k=v"), ("shared-memory", "model-repository")),
        (("--grpc-restricted-protocol=trace:k=v", "--grpc-restricted-protocol", "logging:a=b"), CALLS[:2]),
        (("--http-restricted-api=trace:k=v", "--log-info=1"), CALLS),
        ((f"--grpc-restricted-protocol={','.join(CALLS)}:k=v",), ()),
    ],
)
def test_what_the_user_restricts_keeps_the_users_key(given: tuple[str, ...], left: tuple[str, ...]) -> None:
    options = restriction_options(GOOD, http=False, given=given)
    assert options == ([f"--grpc-restricted-protocol={','.join(left)}:{NAME}={GOOD}"] if left else [])


def test_a_server_takes_restrictions_of_the_users_beside_its_own(repository: Path) -> None:
    mine = ("--grpc-restricted-protocol", "trace,statistics:mine=abc")
    server = EmbeddedServer(repository, ServerOptions(ready_timeout_s=120, triton_arguments=mine))
    with server:
        assert "triton-grpc-protocol-mine" in refusal(server, RESTRICTED["read trace settings"], server.key_header)
        assert "triton-grpc-protocol-mine" in refusal(server, OPEN["statistics"], {})
        assert refusal(server, RESTRICTED["read trace settings"], {"triton-grpc-protocol-mine": "abc"}) == ""
        assert "triton-grpc-protocol-voxtile" in refusal(server, RESTRICTED["load"], {})
        server.kill()


# HTTP ----------------------------------------------------------------------------------------------------------


def test_http_and_metrics_are_off_unless_asked_for(repository: Path) -> None:
    server = EmbeddedServer(repository, ServerOptions(ready_timeout_s=120)).start()
    try:
        listening = {c.laddr.port for c in psutil.Process(server.pid).net_connections("tcp") if c.status == "LISTEN"}
        assert listening == {int(server.grpc_url.rpartition(":")[2])}
        for url, option in (("http_url", "--http-port"), ("metrics_url", "--metrics-port")):
            with pytest.raises(ServerError, match=f"was started without {option}"):
                getattr(server, url)
        assert server.ready_models() == ["double"]
    finally:
        server.kill()


@pytest.fixture
def form(tmp_path: Path) -> Path:
    """A body that curl calls a form, too large for the usual stack of a thread."""
    file = tmp_path / "form"
    file.write_bytes(os.urandom(12_000_000))
    return file


@contextlib.contextmanager
def with_http(repository: Path) -> Iterator[EmbeddedServer]:
    server = EmbeddedServer(repository, ServerOptions(http_port=0, metrics_port=0, ready_timeout_s=120)).start()
    try:
        yield server
    finally:
        server.kill()


def posted(url: str, body: Path) -> subprocess.CompletedProcess[str]:
    command = ["curl", "--silent", "--data-binary", f"@{body}", "--output", "/dev/null", "--write-out", "%{http_code}"]
    return subprocess.run([*command, url], capture_output=True, text=True)


def test_a_scan_that_is_sent_as_a_form_is_refused_and_the_server_lives(repository: Path, form: Path) -> None:
    with with_http(repository) as server:
        for url in (f"http://{server.http_url}/v2/models/double/infer", server.metrics_url):
            assert int(posted(url, form).stdout) >= 400
            assert server.running
        assert doubled(server.grpc_url)


def test_with_the_usual_stack_a_form_ends_the_server_at_either_door(
    repository: Path, form: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault of this release, for which the stack is larger: when this fails, the larger stack can go."""
    monkeypatch.setattr(embedded, "HTTP_STACK_BYTES", 8 << 20)
    for door in ("http", "metrics"):
        with with_http(repository) as server:
            url = server.metrics_url if door == "metrics" else f"http://{server.http_url}/v2/health/live"
            posted(url, form)
            assert server.wait(60) == 128 + signal.SIGSEGV


@pytest.mark.parametrize(
    ("door", "exposed"), [("--http-port", "HTTP is on"), ("--metrics-port", "metrics are on")], ids=["http", "metrics"]
)
def test_the_command_says_what_http_exposes_and_how_it_may_have_died(
    door: str, exposed: str, repository: Path, tmp_path: Path
) -> None:
    ready = tmp_path / "ready.json"
    words = ["--repository", repository, "--grpc-port", "0", door, "0", "--ready-file", ready]
    command = [sys.executable, "-m", "voxtile_server", *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert eventually(ready.exists)
        [triton_server] = [
            child for child in psutil.Process(process.pid).children(recursive=True) if child.name() == "tritonserver"
        ]
        triton_server.send_signal(signal.SIGSEGV)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"{exposed}: whoever reaches" in out
    assert "for development: tritonserver 24.10" in out
    loading, ended = err.splitlines()
    assert loading.startswith("loading double from ")
    assert ended.startswith(f"error: tritonserver ended with code {128 + signal.SIGSEGV} ({exposed}")
