"""Shared memory among strangers: what others leave, hold or pretend costs speed at most; on the real server."""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import mmap
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, service_pb2

from tests.support.namespaces import own_pid_namespace
from tests.support.phantoms import card_of
from tests.support.relay import Answer, Refusal, relay_to
from tests.support.shared_regions import SHARED_MEMORY, mapped, names_of
from tests.support.tile_requests import ROI, requests
from voxtile import ConnectionConfig, InputError, RemoteNetwork, RetryPolicy, TileError
from voxtile.machine.owners import Owner, parse_owner, this_process
from voxtile.triton import shared_memory, slots
from voxtile.triton.connection import local_key
from voxtile.triton.endpoint import Endpoint
from voxtile.triton.grpc_transport import GrpcTransport, connect_transport
from voxtile.triton.transport import DEFAULT_IN_FLIGHT
from voxtile.triton.types import Request, ServedModel, Traffic
from voxtile_server.embedded import EmbeddedServer
from voxtile_server.options import ServerOptions

REGISTER, UNREGISTER, STATUS = (f"SystemSharedMemory{call}" for call in ("Register", "Unregister", "Status"))
X = np.arange(5 * 16 * 24 * 8, dtype=np.float32).reshape(5, 1, *ROI)


def answers_right(transport: GrpcTransport, count: int = 6) -> Traffic:
    """Sends requests and checks every value; returns what it took."""
    traffic = Traffic()
    for number, scores in enumerate(transport.infer(requests(count), traffic=traffic)):
        assert (scores == number).all()
    return traffic


def connected(url: str, wanted: bool | None = None) -> GrpcTransport:
    return connect_transport(url, "identity", ConnectionConfig(shared_memory=wanted))


def python(code: str, *arguments: str, before: Any = ()) -> subprocess.CompletedProcess[str]:
    command = [*before, sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done


def ended_process() -> Owner:
    owner = parse_owner(python("from voxtile.machine.owners import this_process; print(this_process(), end='')").stdout)
    assert owner is not None
    return owner


# Kept for a connection's life ----------------------------------------------------------------------------------


def test_forty_calls_share_their_regions_and_all_are_gone_at_the_end(server: EmbeddedServer) -> None:
    with relay_to(server.grpc_url) as relay:
        with RemoteNetwork(relay.url, "identity", in_flight=2) as network:
            network(X)
            first = mapped(server.grpc_url)
            for batch in (1, 5, 3) * 13:
                np.testing.assert_array_equal(network(X[:batch]), X[:batch])
            assert mapped(server.grpc_url) == first
            assert 1 <= len(first) <= 2
            assert relay.count(REGISTER) == len(first)
        assert relay.count(UNREGISTER) == relay.count(REGISTER)
        assert not mapped(server.grpc_url)
        assert not names_of(os.getpid())


def test_no_more_regions_stay_than_can_be_in_flight(server: EmbeddedServer) -> None:
    with connected(server.grpc_url) as transport:
        assert answers_right(transport, 40).shared_memory
        assert len(mapped(server.grpc_url)) > 1
        answers = transport.infer(requests(3, batch=1), 1)
        next(answers)
        assert len(mapped(server.grpc_url)) == 1
        list(answers)
        assert len(mapped(server.grpc_url)) == 1
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: answers_right(transport, 20), range(4)))
        assert len(mapped(server.grpc_url)) <= DEFAULT_IN_FLIGHT


def test_two_connections_of_one_program_leave_each_other_alone(server: EmbeddedServer) -> None:
    """Also while a region is being mapped."""
    with connected(server.grpc_url) as first:
        answers_right(first)
        ours = mapped(server.grpc_url)
        with connected(server.grpc_url) as second:
            answers_right(second)
            assert ours < mapped(server.grpc_url)
        assert mapped(server.grpc_url) == ours
        assert answers_right(first).retries == 0

    def meanwhile(request: bytes) -> bytes:
        client = InferenceServerClient(server.grpc_url)
        shared_memory.forget_dead_clients(shared_memory.ServerMemory(client, lambda: server.key_header))
        return request

    with relay_to(server.grpc_url, {REGISTER: meanwhile}) as relay, connected(relay.url, True) as transport:
        assert answers_right(transport).retries == 0


def test_headers_travel_with_every_call(server: EmbeddedServer) -> None:
    connection = ConnectionConfig(headers={"authorization": "Bearer of tiles"})
    with relay_to(server.grpc_url) as relay:
        with RemoteNetwork(relay.url, "identity", connection=connection) as network:
            network(X)
        assert {REGISTER, UNREGISTER, STATUS, "ModelInfer"} <= {method for method, _ in relay.calls}
        assert all(headers.get("authorization") == "Bearer of tiles" for _, headers in relay.calls), relay.calls


UNCLOSED = """
import os, sys
import numpy as np
from voxtile import RemoteNetwork
network = RemoteNetwork(sys.argv[1], "identity")
x = np.ones((4, 1, 16, 24, 8), np.float32)
assert (network(x) == x).all()
assert network.transport.infer is not None
child = os.fork()
if child == 0:
    sys.exit(0)  # with all that an interpreter does at its end
assert os.waitpid(child, 0)[1] == 0
from tests.support.shared_regions import mapped
print(os.getpid(), len(mapped(sys.argv[1])))
"""


def test_a_program_that_never_closes_leaves_nothing_at_its_end_and_its_forks_take_nothing(
    server: EmbeddedServer,
) -> None:
    process, while_it_lived = python(UNCLOSED, server.grpc_url).stdout.split()
    assert int(while_it_lived) > 0
    assert not mapped(server.grpc_url, int(process))
    assert not names_of(int(process))


def test_a_network_that_is_only_forgotten_leaves_nothing(server: EmbeddedServer) -> None:
    network = RemoteNetwork(server.grpc_url, "identity")
    network(X)
    assert mapped(server.grpc_url)
    del network
    gc.collect()
    assert not mapped(server.grpc_url)


def test_what_the_server_will_not_let_go_of_is_taken_back_by_the_next(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As memory of a tile that was cancelled and is still computed when the connection closes."""
    monkeypatch.setattr(slots, "RELEASE_TIMEOUT_S", 0.1)
    in_use = Refusal(grpc.StatusCode.INTERNAL, "shared memory region is in use")
    with relay_to(server.grpc_url, {UNREGISTER: lambda _: in_use}) as relay, connected(relay.url) as transport:
        answers_right(transport)
    assert mapped(server.grpc_url)
    with connected(server.grpc_url) as transport:
        answers_right(transport)
    assert not mapped(server.grpc_url)


def test_closing_waits_a_little_for_what_the_server_still_uses(server: EmbeddedServer) -> None:
    asked: list[bytes] = []

    def in_use_at_first(request: bytes) -> bytes | Refusal:
        asked.append(request)
        return Refusal(grpc.StatusCode.INTERNAL, "it is in use") if len(asked) <= 3 else request

    with relay_to(server.grpc_url, {UNREGISTER: in_use_at_first}) as relay, connected(relay.url) as transport:
        answers_right(transport, 1)
    assert not mapped(server.grpc_url)


def test_a_silent_server_is_not_asked_for_every_region(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would cost its whole timeout, at a moment when the user waits for the program's end."""
    monkeypatch.setattr(shared_memory, "UNMAP_TIMEOUT_S", 0.2)
    monkeypatch.setattr(slots, "RELEASE_TIMEOUT_S", 0.1)
    over = threading.Event()
    changes = {UNREGISTER: lambda request: over.wait(60) and request}
    with relay_to(server.grpc_url, changes) as relay:
        with connected(relay.url) as transport:
            answers_right(transport, 40)
            several = mapped(server.grpc_url)
        assert len(several) > 1
        assert relay.count(UNREGISTER) <= 2
        assert mapped(server.grpc_url) == several
        over.set()
    with connected(server.grpc_url) as transport:  # the next one finds them
        answers_right(transport)
    assert not mapped(server.grpc_url)


@pytest.mark.parametrize("late", [False, True], ids=["never obeyed", "obeyed after all"])
def test_a_server_that_was_silent_for_a_moment_is_asked_once_more(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """As one that was busy with something else: no other client may come to take the region from it."""
    monkeypatch.setattr(shared_memory, "UNMAP_TIMEOUT_S", 0.2)
    asked: list[bytes] = []

    def silent_at_first(request: bytes) -> bytes | Refusal:
        asked.append(request)
        if len(asked) > 1:
            return request
        time.sleep(0.4)
        return request if late else Refusal(grpc.StatusCode.INTERNAL, "never passed on")

    with relay_to(server.grpc_url, {UNREGISTER: silent_at_first}) as relay, connected(relay.url) as transport:
        answers_right(transport, 1)
    assert len(asked) >= 2
    assert not mapped(server.grpc_url)


def test_closing_while_another_thread_segments_ends_quietly(server: EmbeddedServer) -> None:
    """pytest turns an exception in a thread into an error."""
    patience = RetryPolicy(no_response_timeout_s=0.2)
    transport = connect_transport(server.grpc_url, "identity", retry_policy=patience)
    answers = transport.infer(requests(10_000))
    next(answers)
    transport.close()
    with contextlib.suppress(Exception):  # whatever it says to the one whose work was taken away
        list(answers)
    answers.close()
    until = time.monotonic() + 60
    while mapped(server.grpc_url) and time.monotonic() < until:  # the server may still be computing what was cancelled
        with connected(server.grpc_url) as next_one:
            answers_right(next_one)
    assert not mapped(server.grpc_url)


def test_kills_and_restarts_leave_no_region_file_descriptor_or_thread(repository: Path) -> None:
    only = ServerOptions(model_control_mode="explicit", load_models=("identity", "identity_onnxruntime"))
    server = EmbeddedServer(repository, only).start()
    try:
        for _ in range(2):  # gRPC and the interpreter open what they keep
            with connected(server.grpc_url, True) as transport:
                answers_right(transport)
        before = open_files(), threads()
        with connected(server.grpc_url, True) as transport:
            answers_right(transport)
            server.kill()  # between two scans: the regions are of a server that is no more
            server.start()
            assert answers_right(transport).shared_memory
            answers = transport.infer(requests(400))
            next(answers)
            server.kill()  # within one
            server.start()
            assert [float(scores.mean()) for scores in answers] == list(range(1, 400))
            assert mapped(server.grpc_url)
        assert not mapped(server.grpc_url)
        assert not names_of(os.getpid())
        assert (open_files(), threads()) == before
    finally:
        server.kill()


def open_files() -> list[str]:
    """What this process has open, sockets apart: gRPC closes those in its own time."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(descriptor))
    return sorted(name for name in found if name.startswith("/") and not name.startswith("/proc/"))


def threads() -> list[str]:
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("voxtile"))


# What others leave ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def left_behind(name: str, kind: str) -> Iterator[Path]:
    path = SHARED_MEMORY / name
    match kind:
        case "folder":
            path.mkdir(mode=0)
        case "link":
            path.symlink_to("/nowhere")
        case "pipe":
            os.mkfifo(path, 0)
        case _:
            path.touch(mode=0)
    try:
        yield path
    finally:
        with contextlib.suppress(FileNotFoundError):
            path.rmdir() if kind == "folder" else path.unlink()


@pytest.mark.parametrize("kind", ["file", "link", "pipe", "folder"])
def test_what_the_dead_have_left_is_removed_or_left_alone(server: EmbeddedServer, kind: str) -> None:
    gone = ended_process()
    with left_behind(f"voxtile-{gone}-0a", kind) as path, connected(server.grpc_url) as transport:
        assert answers_right(transport).shared_memory
        assert os.path.lexists(path) == (kind == "folder")


@pytest.mark.parametrize(
    "name",
    ["voxtile-999999999-1-0", "voxtile-²-1-0-0", "voxtile-", "voxtile-1", "voxtile-*", "voxtile-\udcff-1-0",
     f"voxtile-{'9' * 200}-1-0-0", "voxtile_1_test", "psm_0123"],
)  # fmt: skip
def test_names_that_say_nothing_of_their_owner_are_none_of_our_business(server: EmbeddedServer, name: str) -> None:
    with left_behind(name, "file") as path, connected(server.grpc_url) as transport:
        assert answers_right(transport).shared_memory
        assert path.exists()


def test_the_living_and_the_dead_of_others_keep_their_names(server: EmbeddedServer) -> None:
    gone, here = ended_process(), this_process()
    for owner in (
        here,
        replace(gone, place="0" * 16),
        replace(gone, uid=gone.uid + 1),
    ):
        with left_behind(f"voxtile-{owner}-0a", "file") as path:
            shared_memory._held.add(path.name)
            with connected(server.grpc_url) as transport:
                assert answers_right(transport).shared_memory
            assert path.exists()
            shared_memory._held.discard(path.name)


AS_NOBODY = """
import ctypes, os, sys
import numpy as np, tritonclient.grpc, tritonclient.utils
from voxtile import RemoteNetwork
from voxtile.machine.owners import has_ended, parse_owner
from voxtile.triton import shared_memory
if os.getuid() == 0:
    os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: it may read its own /proc, as a user's programs may
else:  # nobody else can be had: their files cannot be removed
    def refuse(*_, **__):
        raise PermissionError(1, "not permitted")
    shared_memory.Path.unlink = refuse
assert has_ended(parse_owner(sys.argv[2]))
x = np.ones((4, 1, 16, 24, 8), np.float32)
with RemoteNetwork(sys.argv[1], "identity") as network:
    assert (network(x) == x).all()
"""


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_another_users_leftover_stops_nobody(server: EmbeddedServer, kind: str) -> None:
    gone = replace(ended_process(), uid=65534 if os.getuid() == 0 else os.getuid())
    with left_behind(f"voxtile-{gone}-0a", kind) as path:
        said = python(AS_NOBODY, server.grpc_url, str(gone)).stderr
        assert os.path.lexists(path)
    assert "Traceback" not in said


# Other namespaces ----------------------------------------------------------------------------------------------

NEIGHBOUR = """
import sys
import numpy as np
from voxtile import RemoteNetwork
from voxtile.machine import owners
if "pretend" in sys.argv:
    owners._place = lambda: "0" * owners.DIGITS
x = np.ones((4, 1, 16, 24, 8), np.float32)
with RemoteNetwork(sys.argv[1], "identity") as network:
    assert (network(x) == x).all()
    print("holding", flush=True)
    sys.stdin.readline()
    assert (network(x) == x).all()
"""


def neighbour(url: str, *more: str) -> list[str]:
    """What runs a client in another PID namespace; where that is not allowed, one that believes to be in another."""
    way = own_pid_namespace()
    if way is None:
        return [sys.executable, "-c", NEIGHBOUR, url, "pretend"]
    return [*way, *more, sys.executable, "-c", NEIGHBOUR, url]


@pytest.mark.parametrize("proc", [(), ("--mount-proc",)], ids=["our /proc", "its own /proc"])
def test_a_client_in_another_namespace_takes_nothing_from_us(server: EmbeddedServer, proc: tuple[str, ...]) -> None:
    """It finds no process of our ids in its /proc, or others in ours."""
    with connected(server.grpc_url) as transport:
        answers_right(transport)
        ours = mapped(server.grpc_url)
        assert ours
        command = neighbour(server.grpc_url, *proc)
        subprocess.run(command, input="\n", text=True, check=True, capture_output=True, timeout=120)
        assert mapped(server.grpc_url) == ours
        assert answers_right(transport).retries == 0


def test_we_take_nothing_from_a_client_in_another_namespace(server: EmbeddedServer) -> None:
    command = neighbour(server.grpc_url)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "holding\n"
        theirs = every_region(server.grpc_url)
        assert theirs
        with connected(server.grpc_url) as transport:
            answers_right(transport)
            assert theirs <= every_region(server.grpc_url)
        other.communicate("\n", timeout=60)
    assert other.returncode == 0
    assert not theirs & every_region(server.grpc_url)


def every_region(url: str) -> set[str]:
    with InferenceServerClient(url) as client:
        return set(client.get_system_shared_memory_status(headers=local_key(url)).regions)


# Another machine behind our address ----------------------------------------------------------------------------


@contextlib.contextmanager
def another_memory() -> Iterator[Any]:
    """What changes a registration so that the server maps a file of its own, which a name alone would not show."""
    files: list[Path] = []

    def change(request: bytes) -> bytes:
        wanted = service_pb2.SystemSharedMemoryRegisterRequest.FromString(request)
        files.append(SHARED_MEMORY / f"test-other-machine-{os.getpid()}-{len(files)}")
        files[-1].write_bytes(bytes(wanted.byte_size))
        wanted.key = f"/{files[-1].name}"
        return wanted.SerializeToString()

    try:
        yield change
    finally:
        for file in files:
            file.unlink()


def test_memory_that_is_not_ours_is_noticed_and_the_tiles_are_sent_again(
    server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        another_memory() as change,
        relay_to(server.grpc_url, {REGISTER: change}) as relay,
        connected(relay.url) as transport,
    ):
        assert answers_right(transport, 20).retries > 0
        again = answers_right(transport)
        assert (again.retries, again.shared_memory) == (0, False)
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(told) == 1
    assert "does not write to this machine's memory" in told[0]
    assert not mapped(server.grpc_url)


def test_memory_that_is_not_ours_ends_a_scan_that_insists(server: EmbeddedServer) -> None:
    with (
        another_memory() as change,
        relay_to(server.grpc_url, {REGISTER: change}) as relay,
        connected(relay.url, True) as transport,
        pytest.raises(TileError, match="did not write its scores to the shared memory; try --no-shared-memory"),
    ):
        answers_right(transport)
    assert not mapped(server.grpc_url)


@pytest.mark.parametrize("dtype", ["uint8", "fp16", "fp32"])
def test_an_answer_that_nobody_wrote_is_refused_whatever_the_memory_held(server: EmbeddedServer, dtype: str) -> None:
    """The second answer in the same region would else be the first one's scores."""
    card = card_of(name="identity", roi_size=ROI, output={"kind": "logits", "dtype": dtype, "scores": 2})
    model, request = ServedModel(card, "1", 4, ""), Request(0, X[:2], None)
    wire = {"uint8": "UINT8", "fp16": "FP16", "fp32": "FP32"}[dtype]
    said = service_pb2.ModelInferResponse(model_name="identity", model_version="1")
    said.outputs.add(name="scores", datatype=wire, shape=(2, 2, *ROI))

    def written(region: Any, value: int) -> None:
        region.array(np.dtype(np.uint8), (region.size,))[:] = value

    with (
        relay_to(server.grpc_url, {"ModelInfer": lambda _: Answer(said.SerializeToString())}) as relay,
        contextlib.closing(Endpoint(relay.url, ConnectionConfig(shared_memory=True))) as endpoint,
    ):
        call, result = answered(endpoint, model, request)
        written(call.slot, 7)
        assert (endpoint.scores(model, call, result).view(np.uint8) == 7).all()
        region = call.slot
        endpoint.release(call, trusted=True)
        call, result = answered(endpoint, model, request)
        assert call.slot is region
        with pytest.raises(ValueError, match="did not write its scores"):
            endpoint.scores(model, call, result)
        assert call.slot is None


def answered(endpoint: Endpoint, model: ServedModel, request: Request) -> tuple[Any, Any]:
    arrived = threading.Event()
    results: list[Any] = []

    def done(_: Any, result: Any, error: Any) -> None:
        results.append(result if error is None else error)
        arrived.set()

    call = endpoint.send(model, request, done)
    assert arrived.wait(60)
    return call, results[0]


# No memory to share --------------------------------------------------------------------------------------------

CODES = grpc.StatusCode


@pytest.mark.parametrize("code", [CODES.INVALID_ARGUMENT, CODES.UNIMPLEMENTED, CODES.UNAVAILABLE,
                                  CODES.PERMISSION_DENIED, CODES.INTERNAL, CODES.ALREADY_EXISTS])  # fmt: skip
def test_a_server_that_maps_nothing_gets_its_tiles_by_grpc(server: EmbeddedServer, code: grpc.StatusCode) -> None:
    changes = {method: lambda _: Refusal(code) for method in (REGISTER, STATUS)}
    with relay_to(server.grpc_url, changes) as relay:
        with connected(relay.url) as transport:
            assert not answers_right(transport, 20).shared_memory
            assert 1 <= relay.count(REGISTER) <= 2  # it is not asked for every tile
        with connected(relay.url, True) as transport, pytest.raises(InputError, match="--shared-memory was asked for"):
            answers_right(transport)
    assert not mapped(server.grpc_url)
    assert not names_of(os.getpid())


CALLS = [(os, "open"), (os, "posix_fallocate"), (mmap, "mmap"), (os, "link")]
ERRORS = [errno.EACCES, errno.EEXIST, errno.ENOENT, errno.ENOSPC, errno.EROFS, errno.EOPNOTSUPP, errno.EMFILE]


@pytest.mark.parametrize(("module", "call"), CALLS)
def test_whatever_fails_on_this_machine_the_tiles_go_by_grpc_and_it_is_told_once(
    server: EmbeddedServer, module: Any, call: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, files = getattr(module, call), open_files()
    for code in ERRORS:
        tried: list[int] = []

        def fails(*arguments: Any, code: int = code, tried: list[int] = tried, **keywords: Any) -> Any:
            if call != "open" or arguments[0] == shared_memory.SHM:
                tried.append(code)
                raise OSError(code, os.strerror(code))
            return real(*arguments, **keywords)

        caplog.clear()
        with connected(server.grpc_url) as transport, monkeypatch.context() as patch:
            patch.setattr(module, call, fails)
            assert not answers_right(transport, 12).shared_memory
            assert not answers_right(transport).shared_memory
        assert len(tried) == 1  # not once for each tile
        assert [record.getMessage() for record in caplog.records if os.strerror(code) in record.getMessage()]
        assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1
        assert open_files() == files
        assert not names_of(os.getpid())
        assert not mapped(server.grpc_url)


@pytest.mark.parametrize("where", ["missing", "file", "link"])
def test_a_machine_without_a_folder_for_shared_memory_sends_by_grpc(
    server: EmbeddedServer, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "shm"
    if where == "file":
        place.touch()
    elif where == "link":
        place.symlink_to("/nowhere")
    monkeypatch.setattr(shared_memory, "SHM", place)
    with connected(server.grpc_url) as transport:
        assert not answers_right(transport).shared_memory
    with connected(server.grpc_url, True) as transport, pytest.raises(InputError, match="--shared-memory was asked"):
        answers_right(transport)


def test_memory_that_fills_up_and_empties_is_used_while_there_is_some(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    full, left = OSError(errno.ENOSPC, "full"), [2]
    real = os.posix_fallocate

    def allocate(*arguments: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise full
        real(*arguments)

    monkeypatch.setattr(os, "posix_fallocate", allocate)
    with connected(server.grpc_url) as transport:
        assert answers_right(transport, 40).shared_memory
        assert len(mapped(server.grpc_url)) == 2
        left[0] = 100
        monkeypatch.setattr(slots, "RETRY_S", 0.0)
        for endpoint in transport._endpoints:
            endpoint._slots._try_again_at = 0.0
        assert answers_right(transport, 40).shared_memory
        assert len(mapped(server.grpc_url)) > 2


def test_the_server_is_left_as_much_memory_as_we_take(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its engines get their tensors through /dev/shm as well."""
    needed = 2 * X[:2].nbytes
    real = os.fstatvfs

    def nearly_full(descriptor: int) -> os.statvfs_result:
        fields = list(real(descriptor))
        fields[0] = fields[1] = 1
        fields[4] = 2 * needed - 1
        return os.statvfs_result(fields)

    with connected(server.grpc_url) as transport, monkeypatch.context() as patch:
        patch.setattr(os, "fstatvfs", nearly_full)
        assert not answers_right(transport).shared_memory
