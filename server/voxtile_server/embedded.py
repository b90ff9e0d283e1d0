"""The embedded Triton: the tritonserver of a PyPI wheel, run on a model repository, with no Docker.

    with EmbeddedServer("model_repository") as server:
        client = tritonclient.grpc.InferenceServerClient(server.grpc_url)

or, in the foreground, `voxtile-server --repository model_repository`.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from voxtile_server.errors import ServerError
from voxtile_server.install import fetch as fetching
from voxtile_server.install import layout, machine
from voxtile_server.options import EXIT_TIMEOUT_S, Endpoints, triton_options
from voxtile_server.process import log as server_log
from voxtile_server.process import ports
from voxtile_server.process.supervisor import SHARED_MEMORY, remove_link, remove_shared_memory
from voxtile_server.repository import PLAIN, check_repository, plain_link

__all__ = ["EmbeddedServer", "ServerError"]

GRACE_S = EXIT_TIMEOUT_S + 10.0  # tritonserver itself waits EXIT_TIMEOUT_S for requests in flight
READY_TIMEOUT_S = 900.0  # a warm-up of several large networks on two cores takes minutes
POLL_S = 0.05
ANSWER_S = 5.0  # for a question to our own server on this machine
ATTEMPTS = 3  # a port chosen as free can be taken by another process before tritonserver listens on it
SHM_PREFIX = "voxtile"
HTTP, GRPC, METRICS = "--http-port", "--grpc-port", "--metrics-port"
SUPERVISOR = Path(__file__).parent / "process" / "supervisor.py"


class EmbeddedServer:
    """A tritonserver process on a model repository; a context manager that starts and stops it.

    It ends with this process, however this process ends, and takes its stubs and their shared memory with it.
    A server that was stopped or killed can be started again and keeps its ports.

    Args:
        repository: folder of model entries.
        http_port, grpc_port, metrics_port: 0 chooses a free one, at the first start.
        host: address to listen on.
        log_file: where tritonserver's log is appended; by default a temporary file, left only by a failure.
        threads: CPU threads of an engine whose entry says nothing (default: one a core).
        extra_args: further tritonserver options.
        model_control_mode: "none" (every model is loaded at the start), "explicit" or "poll".
        models: with "explicit", the models to load at the start.
        engines: folder with NumPy 1.x and the engines for the stubs, in place of the fetched one.
        cache: where the server is fetched to (default: $VOXTILE_CACHE or ~/.cache/voxtile).
        ready_timeout_s: how long loading and warming up may take.
    """

    def __init__(
        self,
        repository: str | Path,
        *,
        http_port: int = 0,
        grpc_port: int = 0,
        metrics_port: int = 0,
        host: str = "127.0.0.1",
        log_file: str | Path | None = None,
        threads: int | None = None,
        extra_args: Sequence[str] = (),
        model_control_mode: str = "none",
        models: Sequence[str] = (),
        engines: str | Path | None = None,
        cache: str | Path | None = None,
        ready_timeout_s: float = READY_TIMEOUT_S,
    ) -> None:
        self.repository = Path(repository).absolute()
        self.host = host
        self.threads = threads
        self.extra_args = tuple(extra_args)
        self.model_control_mode = model_control_mode
        self.models = tuple(models)
        self.engines = Path(engines).absolute() if engines else None
        self.cache = Path(cache).absolute() if cache else fetching.cache_folder()
        self.ready_timeout_s = ready_timeout_s
        self._wanted = {HTTP: http_port, GRPC: grpc_port, METRICS: metrics_port}
        self._ports = dict(self._wanted)
        self._log = server_log.ServerLog(log_file)
        self._link: Path | None = None
        self._prefix = ""
        self._supervisor: subprocess.Popen[str] | None = None
        self._pid: int | None = None

    def __enter__(self) -> EmbeddedServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Process id of tritonserver; ServerError before the first start."""
        if self._pid is None:
            raise ServerError("the server was not started; call start() or use it as a context manager")
        return self._pid

    @property
    def running(self) -> bool:
        return self._supervisor is not None and self._supervisor.poll() is None

    @property
    def http_url(self) -> str:
        """HOST:PORT of the HTTP endpoint, as tritonclient wants it."""
        return self._authority(HTTP)

    @property
    def grpc_url(self) -> str:
        """HOST:PORT of the gRPC endpoint, as tritonclient wants it."""
        return self._authority(GRPC)

    @property
    def metrics_url(self) -> str:
        return f"http://{self._authority(METRICS)}/metrics"

    @property
    def log_file(self) -> Path:
        """tritonserver's log; ServerError if none was given and the server was not started."""
        return self._log.path

    def start(self) -> EmbeddedServer:
        """Start tritonserver and return when every model is ready.

        Raises:
            ServerError: with the reason, Triton's own where it is Triton's, and what to do.
        """
        if self.running:
            raise ServerError(f"the server is already running (process {self._pid}); stop() it first")
        check_repository(self.repository)
        _refuse_odd_cache(self.cache)
        libpython = machine.check(machine.Machine.here())
        self._ports = ports.settle(self.host, self._ports)
        triton = fetching.fetch_triton(self.cache)
        engines = self.engines or fetching.fetch_engines(self.cache)
        fetching.check_engines(engines)
        backends = layout.lay_out_backends(self.cache, triton)
        _remove_stale_shared_memory()
        self._remove_link()
        self._link = plain_link(self.repository)
        environment = self._environment(f"{layout.libraries(triton)}:{libpython}")
        options = [f"--backend-directory={backends}", *self.extra_args]
        self._start_on_free_ports(layout.binary(triton), options, environment, engines)
        return self

    def stop(self) -> None:
        """End tritonserver: it finishes what is in flight, and is killed after a grace period. Idempotent."""
        if self._supervisor is not None and self.running:
            self._supervisor.terminate()
            self._wait_for_supervisor(GRACE_S + ANSWER_S)
        self._remove_link()
        self._log.remove_temporary()

    def kill(self) -> None:
        """End tritonserver and its stubs at once (SIGKILL), as a crash would. Idempotent."""
        if self._supervisor is None or not self.running:
            return
        if self._pid is None:
            self._supervisor.kill()  # the kernel then kills tritonserver
        else:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
        self._wait_for_supervisor(GRACE_S)

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait for the server's end; its exit code (128 + n after signal n), or None when time is over."""
        if self._supervisor is None:
            return None
        try:
            return self._supervisor.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def ready_models(self) -> list[str]:
        """Names of the models that are ready, as the server itself says."""
        with self._open(f"http://{self.http_url}/v2/repository/index", b'{"ready": true}') as answer:
            return sorted({entry["name"] for entry in json.load(answer)})

    def explain(self) -> str:
        """Why the server has ended or is not ready, from its log."""
        return server_log.explain(self._log.text())

    def _authority(self, option: str) -> str:
        # What is listened on everywhere is reached here.
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"[{host}]:{self._ports[option]}" if ":" in host else f"{host}:{self._ports[option]}"

    def _start_on_free_ports(
        self, binary: Path, options: Sequence[str], environment: dict[str, str], engines: Path
    ) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._launch([str(binary), *self._options(), *options], environment, engines)
                self._wait_until_ready()
                return
            except ServerError:
                lost_a_port = 0 in self._wanted.values() and server_log.NO_PORT in self._log.text()
                if attempt == ATTEMPTS or not lost_a_port:
                    raise
                self._ports = ports.settle(self.host, self._wanted)
            except BaseException:  # an interrupt while it loads must not leave it behind
                self.kill()
                raise

    def _options(self) -> list[str]:
        endpoints = Endpoints(self.host, self._ports[HTTP], self._ports[GRPC], self._ports[METRICS])
        # Our id is in the name, so that what two killed processes leave is known as theirs.
        self._prefix = f"{SHM_PREFIX}_{os.getpid()}_{secrets.token_hex(4)}_"
        return [
            *triton_options(
                str(self._link or self.repository), endpoints, gpu=False, control_mode=self.model_control_mode
            ),
            *(f"--load-model={name}" for name in self.models),
            f"--backend-config=python,shm-region-prefix-name={self._prefix}",
        ]

    def _environment(self, library_path: str) -> dict[str, str]:
        environment = {**os.environ, "LD_LIBRARY_PATH": library_path}
        if self.threads is not None:
            environment["VOXTILE_ENGINE_THREADS"] = str(self.threads)
        return environment

    def _launch(self, command: Sequence[str], environment: dict[str, str], engines: Path) -> None:
        task = {
            "command": list(command),
            "environment": environment,
            # The stub ignores PYTHONPATH, and looks for modules in its working folder first.
            "folder": str(engines),
            "parent": os.getpid(),
            "grace_s": GRACE_S,
            "shm_prefix": self._prefix,
            "link": str(self._link) if self._link else None,
        }
        self._pid = None
        with self._log.open() as log_file:
            self._supervisor = subprocess.Popen(
                [sys.executable, "-I", "-S", str(SUPERVISOR)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log_file,
                text=True,
                start_new_session=True,  # Ctrl-C is for us; we then stop the server in order
            )
        # All of it is written and read at once; the pipes are closed behind it.
        self._pid = self._hand_over(self._supervisor, task)

    def _hand_over(self, supervisor: subprocess.Popen[str], task: dict[str, Any]) -> int:
        if supervisor.stdin is None or supervisor.stdout is None:
            raise ServerError("the server's supervisor has no pipes")
        with supervisor.stdin as pipe:
            json.dump(task, pipe)
        with supervisor.stdout as pipe:
            line = pipe.readline()
        if not line:
            raise ServerError(f"tritonserver could not be started; {self.explain()} (log: {self.log_file})")
        return int(line)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.ready_timeout_s
        while not self._is_ready():
            if not self.running:
                self._fail(f"tritonserver ended with code {self.wait()} before it was ready")
            if server_log.model_failures(self._log.text()):
                time.sleep(4 * POLL_S)  # others may be failing this very moment
                self._fail(f"the model repository {self.repository} does not load")
            if time.monotonic() > deadline:
                self._fail(f"the server was not ready after {self.ready_timeout_s:g} s; allow it more time")
            time.sleep(POLL_S)

    def _is_ready(self) -> bool:
        """Ready with every model; the metrics' endpoint is the last to be opened."""
        try:
            with self._open(f"http://{self.http_url}/v2/health/ready"), self._open(self.metrics_url):
                return True
        except (OSError, urllib.error.URLError):
            return False

    def _open(self, url: str, data: bytes | None = None) -> IO[bytes]:
        # A proxy of the environment must not come between us and our own server.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        answer: IO[bytes] = opener.open(url, data, timeout=ANSWER_S)
        return answer

    def _fail(self, what: str) -> None:
        reason = self.explain()
        self.kill()
        raise ServerError(f"{what}; {reason} (log: {self.log_file})")

    def _wait_for_supervisor(self, timeout_s: float) -> None:
        if self.wait(timeout_s) is None and self._supervisor is not None:
            self._supervisor.kill()
            self._supervisor.wait()
        remove_shared_memory(self._prefix)  # it does so itself, unless it was killed
        self._remove_link()

    def _remove_link(self) -> None:
        if self._link is not None:
            remove_link(self._link)
            self._link = None


def _refuse_odd_cache(cache: Path) -> None:
    if not PLAIN.fullmatch(str(cache)):
        raise ServerError(
            f"Triton cannot start its stubs from {cache}; set VOXTILE_CACHE to a path of letters, digits "
            "and _ . + - / only"
        )


def _remove_stale_shared_memory() -> None:
    """Remove what servers have left whose owner and supervisor were both killed; the owner is in the name."""
    for region in SHARED_MEMORY.glob(f"{SHM_PREFIX}_*_*"):
        owner = region.name.split("_")[1]
        if owner.isdigit() and not Path("/proc", owner).exists():
            remove_shared_memory(region.name)
