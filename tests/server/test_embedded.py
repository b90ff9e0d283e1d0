"""The embedded server as a process: what it refuses, how it ends, and what it leaves (nothing)."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton

from tests.support import tiny_entries as tiny
from voxtile_server.embedded import EmbeddedServer, ServerError
from voxtile_server.install import fetch as fetching
from voxtile_server.install import layout, machine
from voxtile_server.process import log as server_log
from voxtile_server.process import ports
from voxtile_server.repository import check_repository

ROOT = Path(__file__).parents[2]
SHARED_MEMORY = Path("/dev/shm")
# Triton's stubs look for their server every 0.3 s; the rest is for a busy machine.
GONE_WITHIN_S = 15.0
SLOW_START_S = 60


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """A repository whose model takes longer to load than any test waits."""
    tensors = [("x", "TYPE_FP32", (1,))]
    folder = tiny.write_entry(tmp_path / "slow", tiny.config("sleeper", "python", tensors, [("y", *tensors[0][1:])]))
    code = "import time\n\nclass TritonPythonModel:\n    def initialize(self, args):\n"
    code += f"        time.sleep({SLOW_START_S})\n"
    (folder / "1" / "model.py").write_text(code)
    return tmp_path / "slow"


def embedded(repository: Path, **options: Any) -> EmbeddedServer:
    """A server that fails, rather than hangs, should a model never be ready."""
    return EmbeddedServer(repository, ready_timeout_s=120, **options)


def doubled(server_url: str) -> bool:
    """Whether the server behind this address answers, and rightly."""
    roi = np.arange(np.prod(tiny.ROI), dtype=np.int16).reshape(1, *tiny.ROI)
    taken = triton.InferInput("roi", roi.shape, "INT16")
    taken.set_data_from_numpy(roi)
    with triton.InferenceServerClient(server_url) as client:
        scores = client.infer("double", [taken], client_timeout=60).as_numpy("scores")
    return np.array_equal(scores, 2.0 * roi + 1)


def regions(owner: int) -> list[str]:
    return [path.name for path in SHARED_MEMORY.glob(f"voxtile_{owner}_*")]


def family(pid: int) -> list[psutil.Process]:
    """tritonserver and its stubs."""
    server = psutil.Process(pid)
    stubs = server.children(recursive=True)
    assert any("triton_python_backend_stub" in stub.name() for stub in stubs)
    return [server, *stubs]


def served(pid: int) -> Path:
    """The repository as tritonserver was told it: a link, where Triton could not take the path itself."""
    [option] = [word for word in psutil.Process(pid).cmdline() if word.startswith("--model-repository=")]
    return Path(option.partition("=")[2])


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + GONE_WITHIN_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def all_gone(processes: list[psutil.Process]) -> bool:
    return eventually(lambda: not any(process.is_running() for process in processes))


# --- what is checked before anything is started -------------------------------------------------------

GOOD = machine.Machine.here()


def test_this_machine_is_good() -> None:
    assert (machine.check(GOOD) / f"libpython{sys.version_info[0]}.{sys.version_info[1]}.so.1.0").is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"system": "Darwin"}, "Linux x86_64, this is Darwin x86_64; use the official container"),
        ({"architecture": "aarch64"}, "this is Linux aarch64"),
        ({"libc": "glibc 2.31"}, r"glibc 2\.35 or newer .*, found glibc 2\.31"),
        ({"libc": "glibc 2.4"}, r"found glibc 2\.4;"),
        ({"libc": ""}, "found another C library"),
        ({"python": (3, 13)}, r"Python 3\.10, 3\.11, 3\.12 .*, found 3\.13"),
        ({"python": (3, 9)}, r"found 3\.9"),
        ({"libraries": (Path("/nowhere"),)}, r"libpython3\.\d+\.so\.1\.0 is in none of /nowhere: .* is static"),
    ],
)
def test_a_machine_that_cannot_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ServerError, match=message):
        machine.check(replace(GOOD, **change))


@pytest.mark.parametrize("libc", ["glibc 2.35", "glibc 2.100", "glibc 3.0"])
def test_a_newer_glibc_is_taken(libc: str) -> None:
    machine.check(replace(GOOD, libc=libc))


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
        ("203.0.113.7", {"--a": 0}, "--host: 203.0.113.7 is no address of this machine"),
        ("no such host", {"--a": 0}, "--host: 'no such host' is no address of this machine"),
    ],
)
def test_ports_that_cannot_be_are_refused(host: str, wanted: dict[str, int], message: str) -> None:
    with pytest.raises(ServerError, match=message):
        ports.settle(host, wanted)


def test_a_repository_that_cannot_be_served_is_refused(tmp_path: Path, repository: Path) -> None:
    assert check_repository(repository) == ["double"]
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "half" / ".building").mkdir(parents=True)
    tiny.write_doubling(tmp_path / "odd", "two words")
    for name, message in (
        ("missing", "does not exist; build a model first"),
        ("file", "is not a folder"),
        ("empty", "holds no model"),
        ("half", r"/\.building in the model repository has no config\.pbtxt, and Triton would not start"),
        ("odd", "the model name 'two words' would not survive Triton"),
    ):
        with pytest.raises(ServerError, match=message):
            check_repository(tmp_path / name)


# --- fetching -----------------------------------------------------------------------------------------


def test_every_pin_is_exact_and_says_why() -> None:
    lines = [line for line in fetching.PINS.read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z-]+==[\d.]+  # .{20,}", line) for line in lines)
    assert [pin.partition("==")[0] for pin in fetching.read_pins()] == [
        "nvidia-pytriton", "numpy", "onnxruntime", "openvino",
    ]  # fmt: skip


def test_the_engines_are_those_that_certificates_are_made_with() -> None:
    pins = dict(pin.split("==") for pin in fetching.read_pins())
    for name in ("onnxruntime", "openvino"):
        assert importlib.metadata.version(name) == pins[name]


def test_what_is_fetched_is_apart_from_the_environment(cache: Path) -> None:
    assert not cache.is_relative_to(sys.prefix)
    assert layout.binary(fetching.fetch_triton(cache)).is_file()
    fetching.check_engines(fetching.fetch_engines(cache))


def test_backends_are_copies(cache: Path) -> None:
    folder = layout.lay_out_backends(cache, fetching.fetch_triton(cache))
    assert {path.name for path in folder.iterdir()} == {"python", *layout.backend_names()}
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    package = folder / "python" / layout.PACKAGE
    ours = {path.relative_to(layout.OURS): path.read_bytes() for path in layout.OURS.rglob("*.py")}
    assert {path.relative_to(package): path.read_bytes() for path in package.rglob("*.py")} == ours


def test_a_folder_is_made_once_whole_or_not_at_all(tmp_path: Path) -> None:
    folder, made = tmp_path / "thing", []

    def make(fresh: Path) -> None:
        made.append(fresh)
        (fresh / "part").touch()
        time.sleep(0.05)
        (fresh / "whole").touch()

    def whole(there: Path) -> bool:
        assert not there.exists() or (there / "whole").exists(), "a half-made folder was seen"
        return there.exists()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: fetching.make_once(folder, make, whole), range(8)))
    assert len(made) == 1
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["thing"]


def test_what_failed_leaves_nothing_and_is_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "thing"

    def fail(fresh: Path) -> None:
        (fresh / "part").touch()
        raise ServerError("no network")

    with pytest.raises(ServerError, match="no network"):
        fetching.make_once(folder, fail, Path.exists)
    assert not folder.exists()
    fetching.make_once(folder, lambda fresh: (fresh / "whole").touch(), Path.exists)
    # A folder that lost its stamp, or has another, is replaced.
    fetching.make_once(folder, lambda fresh: (fresh / "new").touch(), lambda there: (there / "new").exists())
    assert [path.name for path in folder.iterdir()] == ["new"]


def test_two_processes_fetch_once(tmp_path: Path) -> None:
    """A small pin, so that it is the locking that is tested and not the network."""
    code = (
        "import sys; from pathlib import Path; from voxtile_server.install import fetch as fetching\n"
        "fetching.read_pins = lambda: ('packaging==26.3',)\n"
        "print(fetching.fetch_engines(Path(sys.argv[1])))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    folders = {process.communicate(timeout=120)[0].strip() for process in both}
    assert len(folders) == 1
    [folder] = folders
    assert Path(folder, "packaging", "__init__.py").is_file()
    assert "packaging==26.3" in Path(folder, fetching.STAMP).read_text()


def test_numpy_2_for_the_stubs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="holds no NumPy; fill it with: pip install"):
        fetching.check_engines(tmp_path)
    version = importlib.metadata.version("numpy")
    assert version.startswith("2."), "the environment's own NumPy is the bad example here"
    _copy_metadata("numpy", tmp_path)
    with pytest.raises(ServerError, match=rf"NumPy {version} .* answer with empty tensors; it needs numpy<2"):
        fetching.check_engines(tmp_path)


def _copy_metadata(package: str, folder: Path) -> None:
    found = importlib.metadata.distribution(package)
    shutil.copytree(Path(str(found.locate_file(f"{package}-{found.version}.dist-info"))),
                    folder / f"{package}-{found.version}.dist-info")  # fmt: skip


# --- reading the log ----------------------------------------------------------------------------------

LOG = """\
I1122 04:05:30.793478 8093 model_lifecycle.cc:472] "loading: bad:1"
[libprotobuf ERROR text_format.cc:337] Error parsing text-format inference.ModelConfig: 1:7: Expected string, got: 3
E1122 04:05:30.793211 8093 model_repository_manager.cc:1460] "Poll failed for model directory 'garbled': failed to read text proto from /r/garbled/config.pbtxt"
E1122 04:05:31.359664 8093 model_lifecycle.cc:642] "failed to load 'bad' version 1: Internal: ConfigError: input \\"x\\" is wrong\\n\\nAt:\\n  /b/serving.py(74): initialize\\n"
E1122 04:05:31.376748 8093 model_repository_manager.cc:703] "Invalid argument: ensemble 'public' depends on 'bad' which has no loaded version. Model 'bad' loading failed with error: version 1 is at UNAVAILABLE state: Internal: …;"
I1122 04:05:31.376690 8093 model_lifecycle.cc:777] "failed to load 'bad'"
"""  # noqa: E501


def test_the_log_gives_each_model_its_reason() -> None:
    assert server_log.model_failures(LOG) == {
        "garbled": "failed to read text proto from /r/garbled/config.pbtxt (line:column 1:7: Expected string, got: 3)",
        "bad": 'ConfigError: input "x" is wrong',
        "public": "ensemble 'public' depends on 'bad' which has no loaded version.",
    }  # fmt: skip
    assert "public" not in server_log.explain(LOG)


def test_a_log_with_no_failed_model_gives_its_last_words() -> None:
    text = 'I1122 04:05:30.7 8093 server.cc:1] "fine"\nerror: Failed to create server\n'
    assert server_log.explain(text) == "its last words: error: Failed to create server"
    assert server_log.explain("") == "its last words: none"


# --- the class ----------------------------------------------------------------------------------------


def test_it_answers_on_every_endpoint(server: EmbeddedServer) -> None:
    assert doubled(server.grpc_url)
    assert server.ready_models() == ["double"]
    with server._open(server.metrics_url) as answer:
        assert b'nv_inference_count{model="double"' in answer.read()
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
    server = embedded(repository).start()
    try:
        before = (server.grpc_url, server.http_url, server.metrics_url)
        for kill in (server.kill, lambda: os.kill(server.pid, signal.SIGKILL)):
            processes = family(server.pid)
            with triton.InferenceServerClient(server.grpc_url) as connected:
                assert connected.is_server_live()
                kill()
                assert server.wait(GONE_WITHIN_S) == 128 + signal.SIGKILL
            assert not regions(os.getpid()) or regions(os.getpid()) == _others(server)
            server.start()
            assert all_gone(processes)
            assert (server.grpc_url, server.http_url, server.metrics_url) == before
            assert doubled(server.grpc_url)
    finally:
        server.kill()


def _others(server: EmbeddedServer) -> list[str]:
    """Regions of the module's shared server, which this process owns as well."""
    return [name for name in regions(os.getpid()) if not name.startswith(server._prefix)]


def test_stopped_it_leaves_nothing(repository: Path) -> None:
    with embedded(repository) as server:
        link = served(server.pid)
        assert link.is_symlink()
        processes, log, prefix = family(server.pid), server.log_file, server._prefix
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
    server = EmbeddedServer(slow, ready_timeout_s=1.5, log_file=slow.parent / "log")
    with pytest.raises(ServerError, match=r"was not ready after 1\.5 s"):
        server.start()
    assert not server.running
    assert not list(SHARED_MEMORY.glob(f"{server._prefix}*"))


def test_an_option_that_triton_does_not_know_is_told(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"last words: \S+: unrecognized option '--no-such-option=1' \(log: "):
        embedded(repository, extra_args=["--no-such-option=1"], log_file=tmp_path / "log").start()


def test_explicit_mode_loads_what_it_is_told(tmp_path: Path) -> None:
    for name in ("first", "second"):
        tiny.write_doubling(tmp_path, name)
    server = embedded(tmp_path, model_control_mode="explicit", models=["first"])
    try:
        server.start()
        assert server.ready_models() == ["first"]
        with triton.InferenceServerClient(server.grpc_url) as client:
            client.load_model("second")
        assert server.ready_models() == ["first", "second"]
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


# --- the command --------------------------------------------------------------------------------------


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "voxtile_server", *map(str, arguments)]


def free_ports() -> list[str]:
    return ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]


def refused(*arguments: str | Path, **environment: str) -> str:
    """The one line with which the command ends at once."""
    done = subprocess.run(
        command(*arguments), cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    line = done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert line.startswith("error: ")
    return line


def test_bad_input_ends_with_one_line(tmp_path: Path, repository: Path) -> None:
    assert "does not exist" in refused("--repository", tmp_path / "missing")
    assert "asked for twice, by --http-port and --grpc-port" in refused(
        "--repository", repository, "--http-port", "8123", "--grpc-port", "8123"
    )
    assert "--host: 203.0.113.7 is no address" in refused("--repository", repository, "--host", "203.0.113.7")
    _copy_metadata("numpy", tmp_path)
    assert "it needs numpy<2" in refused("--repository", repository, *free_ports(), "--engines", tmp_path)


def test_a_failed_download_says_what_failed(tmp_path: Path, repository: Path) -> None:
    line = refused("--repository", repository, *free_ports(), VOXTILE_CACHE=str(tmp_path), PIP_NO_INDEX="1",
                   PIP_FIND_LINKS=str(tmp_path))  # fmt: skip
    assert "pip could not fetch nvidia-pytriton==0.7.0: " in line
    assert "check the network" in line
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]


def test_the_cache_is_filled_once(cache: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "voxtile_server.install.fetch"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path, repository: Path) -> None:
    (tmp_path / "file").touch()
    line = refused("--repository", repository, *free_ports(), VOXTILE_CACHE=str(tmp_path / "file"))
    assert "cannot make the cache folder" in line
    assert "set VOXTILE_CACHE" in line
    line = refused("--repository", repository, *free_ports(), VOXTILE_CACHE=str(tmp_path / "$(two words)"))
    assert "set VOXTILE_CACHE to a path of letters" in line


def test_a_broken_config_is_told(tmp_path: Path) -> None:
    (tiny.write_doubling(tmp_path, "garbled") / "config.pbtxt").write_text("name: 3 three")
    line = refused("--repository", tmp_path, *free_ports())
    assert "model 'garbled': failed to read text proto" in line
    assert "1:7: Expected string, got: 3" in line


@contextlib.contextmanager
def foreground(repository: Path, ready_file: Path) -> Iterator[subprocess.Popen[str]]:
    arguments = command("--repository", repository, *free_ports(), "--ready-file", ready_file)
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(ready_file: Path) -> dict[str, Any]:
    assert eventually(ready_file.exists)
    facts: dict[str, Any] = json.loads(ready_file.read_text())
    return facts


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_tells_where_it_listens_and_ends_when_asked(
    repository: Path, tmp_path: Path, number: signal.Signals
) -> None:
    with foreground(repository, tmp_path / "ready.json") as process:
        facts = wait_for(tmp_path / "ready.json")
        assert doubled(facts["grpc_url"])
        assert facts["models"] == ["double"]
        processes = family(facts["pid"])
        process.send_signal(number)
        out, err = process.communicate(timeout=GONE_WITHIN_S)
    assert (process.returncode, err) == (0, "")
    for said in (facts["grpc_url"], facts["http_url"], facts["metrics_url"], "double", str(facts["pid"])):
        assert said in out
    assert all_gone(processes)
    assert not regions(process.pid)
    assert list(tmp_path.iterdir()) == []


def test_the_command_ends_with_its_parent(repository: Path, tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    arguments = command("--repository", repository, *free_ports(), "--ready-file", ready)
    code = "import subprocess, sys; subprocess.run(sys.argv[1:])"
    with subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL) as parent:
        facts = wait_for(ready)
        processes = [*family(facts["pid"]), *psutil.Process(parent.pid).children()]
        parent.kill()
    assert all_gone(processes)
    assert eventually(lambda: list(tmp_path.iterdir()) == [])


def test_an_interrupt_while_loading_leaves_nothing(slow: Path, tmp_path: Path) -> None:
    with foreground(slow, tmp_path / "ready.json") as process:
        children: list[psutil.Process] = []

        def has_stub() -> bool:
            children[:] = psutil.Process(process.pid).children(recursive=True)
            return any("stub" in child.name() for child in children)

        assert eventually(has_stub)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=GONE_WITHIN_S)
    assert process.returncode == 0
    assert all_gone(children)
    assert not regions(process.pid)


def test_the_command_says_when_tritonserver_has_died(repository: Path, tmp_path: Path) -> None:
    with foreground(repository, tmp_path / "ready.json") as process:
        os.kill(wait_for(tmp_path / "ready.json")["pid"], signal.SIGKILL)
        _, err = process.communicate(timeout=GONE_WITHIN_S)
    assert process.returncode == 1
    assert f"tritonserver ended with code {128 + signal.SIGKILL}" in err
