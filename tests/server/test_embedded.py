"""The embedded server as a process: what it refuses, how it ends, and what it leaves (nothing)."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import tritonclient.grpc as triton

from tests.support import tiny_entries as tiny
from tests.support.served_processes import (
    GONE_WITHIN_S,
    SHARED_MEMORY,
    all_gone,
    doubled,
    eventually,
    family,
    regions,
    served,
    shm_prefix,
)
from voxtile_server import embedded as embedded_server
from voxtile_server.embedded import EmbeddedServer
from voxtile_server.errors import ServerError
from voxtile_server.options import ServerOptions
from voxtile_server.process import shared_memory

ROOT = Path(__file__).parents[2]


def embedded(repository: Path, **options: Any) -> EmbeddedServer:
    """A server that fails, rather than hangs, should a model never be ready."""
    return EmbeddedServer(repository, ServerOptions(**{"ready_timeout_s": 120, **options}))


def test_it_answers_on_every_endpoint(server: EmbeddedServer) -> None:
    assert doubled(server.grpc_url)
    assert server.ready_models() == ["double"]
    with urllib.request.urlopen(server.metrics_url) as answer:
        assert b'nv_inference_count{model="double"' in answer.read()
    with urllib.request.urlopen(f"http://{server.http_url}/v2/health/ready") as answer:
        assert answer.status == 200
    assert server.running
    assert psutil.Process(server.pid).name() == "tritonserver"


def test_it_listens_on_loopback_only(server: EmbeddedServer) -> None:
    listening = [c.laddr for c in psutil.Process(server.pid).net_connections("tcp") if c.status == "LISTEN"]
    assert len(listening) == 3
    # gRPC opens a socket of IPv6 for an address of IPv4.
    assert {address.ip.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}


def test_a_running_server_is_not_started_again(server: EmbeddedServer) -> None:
    with pytest.raises(ServerError, match="already running"):
        server.start()


def test_what_it_shares_with_its_stubs_is_not_taken_for_a_dead_servers(server: EmbeddedServer) -> None:
    shared = regions(os.getpid())
    assert len(shared) > 1
    shared_memory.remove_stale()
    assert regions(os.getpid()) == shared
    assert doubled(server.grpc_url)


def test_a_second_server_on_its_ports_is_refused_by_name(server: EmbeddedServer, repository: Path) -> None:
    port = int(server.http_url.rpartition(":")[2])
    started = time.monotonic()
    with pytest.raises(ServerError, match=f"--http-port: port {port} of 127.0.0.1 is taken"):
        embedded(repository, http_port=port).start()
    assert time.monotonic() - started < 1


def test_it_outlives_the_thread_that_started_it(repository: Path) -> None:
    """A death signal would come with the end of the thread, not of the process."""
    server = embedded(repository)
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    try:
        time.sleep(1)
        assert server.running
        assert doubled(server.grpc_url)
    finally:
        server.kill()


def test_killed_it_starts_at_once_on_the_same_ports(repository: Path) -> None:
    others = set(regions(os.getpid()))  # of the shared server, which this process owns as well
    server = embedded(repository).start()
    try:
        before = server.grpc_url
        for kill in (server.kill, lambda: os.kill(server.pid, signal.SIGKILL)):
            processes = family(server.pid)
            with triton.InferenceServerClient(server.grpc_url) as connected:
                assert connected.is_server_live()
                kill()
                assert server.wait(GONE_WITHIN_S) == 128 + signal.SIGKILL
            assert set(regions(os.getpid())) == others
            server.start()
            assert all_gone(processes)
            assert server.grpc_url == before
            assert doubled(server.grpc_url)
    finally:
        server.kill()


def test_stopped_it_leaves_nothing(repository: Path) -> None:
    with embedded(repository) as server:
        link = served(server.pid)
        assert link.is_symlink()
        processes, log, prefix = family(server.pid), server.log_file, shm_prefix(server.pid)
        assert list(SHARED_MEMORY.glob(f"{prefix}*"))
    assert all_gone(processes)
    assert not log.parent.exists()
    assert not link.parent.exists()
    assert not list(SHARED_MEMORY.glob(f"{prefix}*"))
    assert server.wait() == 0
    server.stop()
    server.kill()


def test_a_model_that_does_not_load_is_named_at_once(tmp_path: Path) -> None:
    """Triton's own reason, in the first failing moment, with nothing left running."""
    (tiny.write_doubling(tmp_path, "broken") / "1" / "model.onnx").write_bytes(b"not a graph")
    tiny.write_doubling(tmp_path, "sound", "openvino")
    tiny.write_ensemble(tmp_path, "public", "broken")
    server = embedded(tmp_path)
    with pytest.raises(ServerError, match=r"does not load; model 'broken': .*Protobuf parsing failed") as caught:
        server.start()
    assert "'sound'" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not server.running
    assert str(server.log_file) in str(caught.value)
    assert "Protobuf parsing failed" in server.log_file.read_text()
    server.stop()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"given": "TYPE_FP16"}, "output 'scores': config.pbtxt says TYPE_FP16, the graph has TYPE_FP32"),
        ({"parameters": {"execution_mode": "7"}}, "execution_mode: 7 is not known"),
        ({"instance_group": [{"count": 1, "kind": "KIND_GPU"}]}, "KIND_GPU but no GPUs are available"),
    ],
)
def test_a_config_that_does_not_fit_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = tiny.write_doubling(tmp_path / "repository", "wrong", **change)
    tiny.onnx.save(tiny.doubling("TYPE_INT16", "TYPE_FP32"), folder / "1" / "model.onnx")
    server = embedded(tmp_path / "repository", log_file=tmp_path / "logs" / "server.log")
    with pytest.raises(ServerError, match=f"model 'wrong': .*{message}"):
        server.start()


def test_a_server_that_is_not_ready_in_time_is_ended(slow: Path) -> None:
    before = regions(os.getpid())
    server = embedded(slow, ready_timeout_s=1.5, log_file=slow.parent / "log")
    with pytest.raises(ServerError, match=r"was not ready after 1\.5 s"):
        server.start()
    assert not server.running
    assert regions(os.getpid()) == before


def test_an_option_that_triton_does_not_know_is_told(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"last words: \S+: unrecognized option '--no-such-option=1' \(log: "):
        embedded(repository, triton_arguments=("--no-such-option=1",), log_file=tmp_path / "log").start()


def test_explicit_mode_loads_what_it_is_told(tmp_path: Path) -> None:
    for name in ("first", "second"):
        tiny.write_doubling(tmp_path, name)
    server = embedded(tmp_path, model_control_mode="explicit", load_models=("first",))
    try:
        server.start()
        assert server.ready_models() == ["first"]
        with triton.InferenceServerClient(server.grpc_url) as client:
            client.load_model("second", headers=server.key_header)
            assert server.ready_models() == ["first", "second"]
            client.load_model("first", headers=server.key_header)  # unchanged, so nothing is loaded
            client.unload_model("first", headers=server.key_header)
            assert eventually(lambda: server.ready_models() == ["second"])
    finally:
        server.kill()


@pytest.mark.parametrize(("host", "shown"), [("0.0.0.0", "127.0.0.1:0"), ("::1", "[::1]:0")])
def test_addresses_are_those_that_a_client_can_use(repository: Path, host: str, shown: str) -> None:
    assert embedded(repository, host=host).grpc_url == shown


def test_before_the_start_there_is_neither_process_nor_log(repository: Path) -> None:
    server = embedded(repository)
    for ask in (lambda: server.pid, lambda: server.log_file):
        with pytest.raises(ServerError, match="not started"):
            ask()
    assert (server.running, server.wait()) == (False, None)
    server.stop()


def test_a_repository_without_a_plain_link_leaves_no_link_to_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / "the models", tmp_path / "the volumes"]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "plain"))
    Path(tempfile.gettempdir()).mkdir()
    plain_link = embedded_server.plain_link

    def link(folder: Path) -> Path | None:
        if folder == folders[1]:
            raise ServerError("no plain path")
        return plain_link(folder)

    monkeypatch.setattr(embedded_server, "plain_link", link)
    with pytest.raises(ServerError, match="no plain path"):
        embedded(folders[0], volume_repository=folders[1])._launch([], {}, tmp_path)
    assert list(Path(tempfile.gettempdir()).iterdir()) == []


# --- ends that nobody planned -------------------------------------------------------------------------

OWNER = """
import sys, time
from voxtile_server.embedded import EmbeddedServer
server = EmbeddedServer(sys.argv[1]).start()
print(server.pid, flush=True)
time.sleep(600)
"""


@contextlib.contextmanager
def owner(repository: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Another process that owns a server; its process, and tritonserver's id."""
    command = [sys.executable, "-c", OWNER, str(repository)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process, int(process.stdout.readline()) if process.stdout else 0
        finally:
            process.kill()


def test_it_ends_when_its_owner_is_killed(repository: Path) -> None:
    with owner(repository) as (process, pid):
        processes = family(pid)
        link = served(pid)
        assert link.is_symlink()
        assert regions(process.pid)
        process.kill()
        assert all_gone(processes)
        assert eventually(lambda: not regions(process.pid))
        assert eventually(lambda: not link.parent.exists())


def test_it_ends_when_owner_and_supervisor_are_killed(repository: Path) -> None:
    """Nobody is left to clean up: the kernel ends tritonserver, and the next server removes the remains."""
    with owner(repository) as (process, pid):
        processes = family(pid)
        supervisor = psutil.Process(pid).parent()
        process.send_signal(signal.SIGSTOP)  # so that it cannot clean up between the two kills
        supervisor.kill()
        process.kill()
        process.wait()
        assert all_gone(processes)
    embedded(repository).start().kill()
    assert not regions(process.pid)
