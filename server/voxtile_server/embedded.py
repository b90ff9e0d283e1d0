"""The embedded Triton: the tritonserver of a PyPI wheel, run on a model repository, without Docker.

    with EmbeddedServer("model_repository") as server:
        client = tritonclient.grpc.InferenceServerClient(server.grpc_url)

or, in the foreground, `voxtile-server --repository model_repository`. It knows nothing of the command line.

It is for development: its release has published faults (docs/how-to/secure.md). So HTTP is off unless a port is asked
for, and calls that segment no scan need a key.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from voxtile_server.certificates import certificate_options
from voxtile_server.errors import ServerError
from voxtile_server.install import client, fetch, layout, machine, pytorch
from voxtile_server.options import (
    EMBEDDED_VERSION,
    EXIT_TIMEOUT_S,
    GRPC,
    HTTP,
    METRICS,
    VERSION_VARIABLE,
    Endpoints,
    ServerOptions,
    triton_options,
)
from voxtile_server.process import log as server_log
from voxtile_server.process import ports, shared_memory
from voxtile_server.process.supervised import SupervisedProgram, Task
from voxtile_server.process.supervisor import remove_link
from voxtile_server.repository import PLAIN, check_repository, plain_link, uses_backend
from voxtile_server.residency import door
from voxtile_server.residency.rules import Rules
from voxtile_server.residency.service import Residency
from voxtile_server.restricted import HEADER, new_key, restriction_options

log = logging.getLogger("voxtile.server")

GRACE_S = EXIT_TIMEOUT_S + 10.0  # tritonserver itself waits EXIT_TIMEOUT_S for requests in flight
MARGIN_S = 5.0  # for the supervisor, beyond that
POLL_S = 0.05
CONFIG_NAME = "embedded"  # an entry's configs/embedded.pbtxt, where it has one, goes before its config.pbtxt
# What a client calls a form is laid twice on the stack of a thread of HTTP; with the usual 8 MiB, 5 MB end the server.
# Only addresses are reserved: a thread takes the memory that it writes to.
HTTP_STACK_BYTES = 512 << 20
ATTEMPTS = 3  # another process can take a port that we chose as free before tritonserver listens on it
# What is listened on everywhere is reached here.
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class EmbeddedServer:
    """A tritonserver process on a model repository; a context manager that starts and stops it.

    It ends with this process, however this process ends, and takes its stubs and their shared memory with it.
    A server that was stopped or killed can be started again and keeps its ports.

    Args:
        repository: the folder of model entries.
        options: how it runs; without them, on free ports of this machine.
    """

    def __init__(self, repository: str | Path, options: ServerOptions | None = None) -> None:
        self.repository = Path(repository).absolute()
        self.options = options or ServerOptions()
        asked = {HTTP: self.options.http_port, GRPC: self.options.grpc_port, METRICS: self.options.metrics_port}
        self._wanted = {option: port for option, port in asked.items() if port is not None}
        self._ports = dict(self._wanted)
        self._key = ""
        self._certificates: list[str] = []
        self._log = server_log.ServerLog(self.options.log_file)
        self._program: SupervisedProgram | None = None
        self._residency: Residency | None = None

    def __enter__(self) -> EmbeddedServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process id of tritonserver.

        Raises:
            ServerError: it was not started.
        """
        if self._program is None or self._program.pid is None:
            raise ServerError("the server was not started; call start() or use it as a context manager")
        return self._program.pid

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._program is not None and self._program.running

    @property
    def http_url(self) -> str:
        """HOST:PORT of the HTTP endpoint, as tritonclient wants it.

        Raises:
            ServerError: HTTP is off.
        """
        return self._authority(HTTP)

    @property
    def grpc_url(self) -> str:
        """HOST:PORT of the gRPC endpoint, as tritonclient wants it."""
        return self._authority(GRPC)

    @property
    def metrics_url(self) -> str:
        """The full URL of the Prometheus metrics.

        Raises:
            ServerError: they are off.
        """
        return f"http://{self._authority(METRICS)}/metrics"

    @property
    def key_header(self) -> dict[str, str]:
        """The header with which calls by gRPC are let in that need the key; Voxtile's own client finds it by itself."""
        return {HEADER: self._key}

    @property
    def log_file(self) -> Path:
        """tritonserver's log.

        Raises:
            ServerError: no file was given, and the server was not started.
        """
        return self._log.path

    def start(self) -> EmbeddedServer:
        """Start tritonserver and return when every model is ready.

        Raises:
            ServerError: the reason, Triton's own where it is Triton's, and what to do.
        """
        if self.running:
            raise ServerError(f"the server is already running (process {self.pid}); stop() it first")
        served = layout.served_backends()
        models = [name for folder in self._repositories() for name in check_repository(folder, served)]
        options = self.options
        self._certificates = certificate_options(options.tls_certificate, options.tls_key, options.tls_client_ca)
        cache = (self.options.cache or fetch.cache_folder()).absolute()
        _refuse_odd_cache(cache)
        libpython = machine.check(machine.Machine.here())
        self._ports = ports.settle(self.options.host, self._ports)
        triton = fetch.fetch_triton(cache)
        engines = (self.options.engines or fetch.fetch_engines(cache)).absolute()
        fetch.check_engines(engines)
        backends = layout.lay_out_backends(cache, triton)
        shared_memory.remove_stale()
        if options.on_demand:
            self._residency = Residency(self.repository, Rules(options.max_models, options.idle_s))
            log.info("%s: each is loaded when a client asks for it", self.repository)
        else:
            log.info("loading %s from %s; large models take minutes", ", ".join(models), self.repository)
        try:
            self._start_on_free_ports(
                [str(layout.binary(triton)), f"--backend-directory={backends}"],
                self._environment(f"{layout.libraries(triton)}:{libpython}", cache),
                engines,
            )
        except BaseException:
            self._end_residency()
            raise
        if self._residency is not None:
            self._residency.begin(self.grpc_url, self.key_header)
        return self

    def stop(self) -> None:
        """End tritonserver: it finishes what is in flight, and is killed after a grace period.

        A server that does not run is left as it is.
        """
        self._end_residency()
        if self._program is not None:
            self._program.stop(MARGIN_S)
        self._log.remove_temporary()

    def kill(self) -> None:
        """End tritonserver and its stubs at once (SIGKILL), as a crash would.

        A server that does not run is left as it is.
        """
        self._end_residency()
        self._kill_program()

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait for the server's end.

        Returns:
            Its exit code (128 + n after signal n); None when the time is over, or where it was never started.
        """
        return self._program.wait(timeout_s) if self._program is not None else None

    def ready_models(self) -> list[str]:
        """The names of the models that are loaded, as the server says in its log."""
        return [name for name in server_log.loaded_models(self._log.text()) if name != door.ENTRY]

    def explain(self) -> str:
        """Why the server has ended or is not ready, from its log."""
        return server_log.explain(self._log.text())

    def _kill_program(self) -> None:
        if self._program is not None:
            self._program.kill()

    def _end_residency(self) -> None:
        if self._residency is not None:
            self._residency.close()
            self._residency = None

    def _repositories(self) -> list[Path]:
        volumes = self.options.volume_repository
        return [self.repository, *([volumes.absolute()] if volumes else [])]

    def _authority(self, option: str) -> str:
        if option not in self._ports:
            raise ServerError(f"nothing listens there: the server was started without {option}; give it, or 0")
        host = EVERYWHERE.get(self.options.host, self.options.host)
        return f"[{host}]:{self._ports[option]}" if ":" in host else f"{host}:{self._ports[option]}"

    def _environment(self, library_path: str, cache: Path) -> dict[str, str]:
        environment = {**os.environ, "LD_LIBRARY_PATH": library_path, VERSION_VARIABLE: EMBEDDED_VERSION}
        if any(uses_backend(folder, client.BACKEND) for folder in self._repositories()):
            environment[client.VARIABLE] = client.fetch_client(cache)
        if (torch := pytorch.folder()) is not None:
            environment[pytorch.VARIABLE] = str(torch)
        if self.options.threads is not None:
            environment["VOXTILE_ENGINE_THREADS"] = str(self.options.threads)
        return environment

    def _start_on_free_ports(self, command: Sequence[str], environment: Mapping[str, str], engines: Path) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._launch(command, environment, engines)
                self._wait_until_ready()
                return
            except ServerError:
                lost_a_port = 0 in self._wanted.values() and server_log.NO_PORT in self._log.text()
                if attempt == ATTEMPTS or not lost_a_port:
                    raise
                self._ports = ports.settle(self.options.host, self._wanted)
            except BaseException:  # an interrupt while it loads must not leave it behind
                self._kill_program()
                raise

    def _launch(self, command: Sequence[str], environment: Mapping[str, str], engines: Path) -> None:
        links: dict[Path, Path | None] = {}
        try:
            for folder in self._repositories():
                links[folder] = plain_link(folder)
            with shared_memory.locked_prefix() as (prefix, lock), self._log.open() as log_file:
                self._key = new_key()
                shared_memory.leave_key(prefix, self._ports[GRPC], self._key)
                task = Task(
                    command=[
                        *command,
                        *self._triton_options([link or folder for folder, link in links.items()], prefix),
                    ],
                    environment=environment,
                    # The stub ignores PYTHONPATH, and looks for modules in its working folder first.
                    folder=str(engines),
                    grace_s=GRACE_S,
                    shm_prefix=prefix,
                    links=[str(link) for link in links.values() if link],
                    parent=os.getpid(),
                    stack_bytes=HTTP_STACK_BYTES if {HTTP, METRICS} & self._ports.keys() else 0,
                )
                self._program = SupervisedProgram(task, log_file, lock)
        except BaseException:
            for link in filter(None, links.values()):
                remove_link(link)
            raise
        if not self._program.start():
            self._fail("tritonserver could not be started")

    def _triton_options(self, repositories: Sequence[Path], shm_prefix: str) -> list[str]:
        options = self.options
        models, *volumes = map(str, repositories)
        endpoints = Endpoints(options.host, self._ports.get(HTTP), self._ports[GRPC], self._ports.get(METRICS))
        return [
            *triton_options(
                models,
                endpoints,
                gpu=False,
                control_mode="explicit" if options.on_demand else options.model_control_mode,
                volumes=volumes[0] if volumes else None,
            ),
            *(f"--load-model={name}" for name in options.load_models),
            *self._door_options(),
            f"--model-config-name={CONFIG_NAME}",
            f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
            *self._certificates,
            *restriction_options(self._key, http=HTTP in self._ports, given=options.triton_arguments),
            *options.triton_arguments,
        ]

    def _door_options(self) -> list[str]:
        """What makes the server load the entry by which clients ask for models."""
        if self._residency is None:
            return []
        return [f"--model-repository={self._residency.door}", f"--load-model={door.ENTRY}"]

    def _wait_until_ready(self) -> None:
        """Return when it listens everywhere, which it does when every model is loaded."""
        deadline = time.monotonic() + self.options.ready_timeout_s
        while True:
            if not self.running:
                small = shared_memory.too_small()  # some of its processes then end without a word
                self._fail(f"tritonserver ended with code {self.wait()} before it was ready{small}")
            if self._log.failures():
                time.sleep(4 * POLL_S)  # others may be failing at this very moment
                self._fail(f"the model repository {self.repository} does not load")
            if ports.listening(self.pid) >= set(self._ports.values()):
                return
            if time.monotonic() > deadline:
                self._fail(
                    f"the server was not ready after {self.options.ready_timeout_s:g} s; "
                    "give it more time with --ready-timeout"
                )
            time.sleep(POLL_S)

    def _fail(self, what: str) -> None:
        reason = self.explain()
        self._kill_program()
        raise ServerError(f"{what}; {reason} (log: {self.log_file})")


def _refuse_odd_cache(cache: Path) -> None:
    if not PLAIN.fullmatch(str(cache)):
        raise ServerError(
            f"Triton cannot start its stubs from {cache}; set VOXTILE_CACHE to a path of letters, digits "
            "and _ . + - / only"
        )
