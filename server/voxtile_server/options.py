"""The options of the embedded server, each declared once, and tritonserver's own options made from them.

The command line is made from these fields (cli.py), and `compose.yaml` and the Kubernetes files are tested against
`triton_options`. It knows nothing of processes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from voxtile_server.certificates import check_together
from voxtile_server.errors import ServerError

EXIT_TIMEOUT_S = 30
EMBEDDED_RELEASE = "24.10"
"""The release of the embedded tritonserver."""

EMBEDDED_VERSION = "2.51.0"
"""What the embedded tritonserver calls itself."""

VERSION_VARIABLE = "TRITON_SERVER_VERSION"
"""The environment variable by which containers tell their server's version, which masks of scan entries name."""

LIMITED_FROM = "25.06"
"""The release from which tritonserver refuses bodies of HTTP above 64 MB, unless an option says more."""

LARGEST_BODY = "--http-max-input-size=2147483647"
SHARING_FROM = "26.04"
"""The release from which tritonserver knows an option for the shared memory of clients."""

VOLUME_OPTIONS = (
    # Scans and masks go through the stub's shared memory, which never shrinks: in large steps, its pages count once.
    "--backend-config=python,shm-growth-byte-size=67108864",
    # tritonserver would keep messages of whole scans for later ones.
    "--grpc-infer-allocation-pool-size=0",
    "--http-header-forward-pattern=voxtile-.*",
    "--grpc-header-forward-pattern=voxtile-.*",
)
"""What tritonserver of any release needs beside a repository whose entries segment whole scans."""
HTTP, GRPC, METRICS = "--http-port", "--grpc-port", "--metrics-port"
PORT = {"type": int, "metavar": "PORT"}
FILE = {"type": Path, "metavar": "FILE"}
FOLDER = {"type": Path, "metavar": "DIR"}
CONTROL_MODES = ("none", "explicit", "poll")


class Option(NamedTuple):
    """How a field is given on the command line.

    Attributes:
        flag: the option's name there.
        help: what it means.
        argparse: how argparse reads its words.
    """

    flag: str
    help: str
    argparse: dict[str, Any]


@dataclass(frozen=True)
class ServerOptions:
    """How the embedded server runs. The help text of each field says what it means.

    Raises:
        ServerError: a value that cannot be; the text names the option.
    """

    http_port: Annotated[
        int | None, Option(HTTP, "port for HTTP; 0 chooses a free one; without it, HTTP is off", PORT)
    ] = None
    grpc_port: Annotated[int, Option(GRPC, "port for gRPC; 0 chooses a free one", PORT)] = 0
    metrics_port: Annotated[
        int | None,
        Option(METRICS, "port for Prometheus metrics, by HTTP; 0 chooses a free one; without it, they are off", PORT),
    ] = None
    host: Annotated[str, Option("--host", "address to listen on", {"metavar": "ADDRESS"})] = "127.0.0.1"
    tls_certificate: Annotated[
        Path | None, Option("--tls-certificate", "PEM: this server's certificate; encrypts gRPC", FILE)
    ] = None
    tls_key: Annotated[Path | None, Option("--tls-key", "PEM: its private key", FILE)] = None
    tls_client_ca: Annotated[
        Path | None,
        Option("--tls-client-ca", "PEM: authorities; only clients with a certificate of theirs are let in", FILE),
    ] = None
    log_file: Annotated[
        Path | None,
        Option("--log-file", "append tritonserver's log to this file; without it, only a failure leaves a log", FILE),
    ] = None
    threads: Annotated[
        int | None,
        Option(
            "--threads",
            "CPU threads of an engine whose entry says nothing; without it, one per core",
            {"type": int, "metavar": "N"},
        ),
    ] = None
    model_control_mode: Annotated[
        str,
        Option(
            "--model-control-mode",
            "none: load every model at the start; explicit: only those of --load-model; poll: also those that change",
            {"choices": CONTROL_MODES},
        ),
    ] = "none"
    load_models: Annotated[
        tuple[str, ...],
        Option(
            "--load-model",
            "a model to load at the start, with --model-control-mode explicit; may be given several times",
            {"action": "append", "metavar": "NAME"},
        ),
    ] = ()
    volume_repository: Annotated[
        Path | None,
        Option(
            "--volume-repository",
            "a second folder of model entries: those that segment whole scans, as voxtile-build volume writes them",
            FOLDER,
        ),
    ] = None
    max_models: Annotated[
        int | None,
        Option(
            "--max-models",
            "load models when clients ask for them, and no more than this many at once; those not in use make room",
            {"type": int, "metavar": "N"},
        ),
    ] = None
    idle_s: Annotated[
        float | None,
        Option(
            "--idle",
            "load models when clients ask for them, and unload one after so many seconds without a request",
            {"type": float, "metavar": "SECONDS"},
        ),
    ] = None
    engines: Annotated[
        Path | None,
        Option("--engines", "folder with NumPy 1.x and the engines, instead of the fetched one", FOLDER),
    ] = None
    cache: Annotated[
        Path | None,
        Option("--cache", "where the server is fetched to; without it, $VOXTILE_CACHE or ~/.cache/voxtile", FOLDER),
    ] = None
    ready_timeout_s: Annotated[
        float,
        Option("--ready-timeout", "how long loading and warming up may take", {"type": float, "metavar": "SECONDS"}),
    ] = 900  # a warm-up of several large networks on two cores takes minutes
    triton_arguments: tuple[str, ...] = ()
    """Further options for tritonserver, in its own words; on the command line they stand after `--`."""

    def __post_init__(self) -> None:
        check_together(self.tls_certificate, self.tls_key, self.tls_client_ca, self.http_port)
        if self.threads is not None and self.threads < 1:
            raise ServerError(f"--threads: expected a whole number from 1, got {self.threads}")
        if not self.ready_timeout_s > 0:
            raise ServerError(f"--ready-timeout: expected seconds above 0, got {self.ready_timeout_s:g}")
        if self.model_control_mode not in CONTROL_MODES:
            raise ServerError(
                f"--model-control-mode: expected one of {', '.join(CONTROL_MODES)}, got {self.model_control_mode!r}"
            )
        if self.load_models and self.model_control_mode != "explicit":
            raise ServerError("--load-model has a meaning only with --model-control-mode explicit; add it")
        self._check_on_demand()
        if self.triton_arguments and not self.triton_arguments[0].startswith("-"):
            raise ServerError(
                f"{self.triton_arguments[0]!r} is not an option of tritonserver; they stand after -- and begin with --"
            )

    @property
    def on_demand(self) -> bool:
        """Whether models are loaded when clients ask for them."""
        return self.max_models is not None or self.idle_s is not None

    def _check_on_demand(self) -> None:
        if self.max_models is not None and self.max_models < 1:
            raise ServerError(f"--max-models: expected a whole number from 1, got {self.max_models}")
        if self.idle_s is not None and not 0 < self.idle_s < math.inf:
            raise ServerError(f"--idle: expected seconds above 0, got {self.idle_s:g}")
        if not self.on_demand:
            return
        for flag, given, why in (
            ("--model-control-mode", self.model_control_mode != "none", "they decide themselves what is loaded"),
            ("--volume-repository", self.volume_repository is not None, "its entries need their models loaded"),
            ("--tls-certificate", self.tls_certificate is not None, "they reach their own server without encryption"),
        ):
            if given:
                raise ServerError(f"--max-models and --idle go without {flag}: {why}; leave one of them out")


@dataclass(frozen=True)
class Endpoints:
    """Where tritonserver listens.

    Attributes:
        address: the address.
        http: the port for HTTP; None where it is off.
        grpc: the port for gRPC.
        metrics: the port for Prometheus metrics; None where they are off.
    """

    address: str
    http: int | None
    grpc: int
    metrics: int | None


def triton_options(
    repository: str,
    endpoints: Endpoints,
    *,
    gpu: bool,
    control_mode: str = "none",
    volumes: str | None = None,
    release: str = EMBEDDED_RELEASE,
) -> list[str]:
    """Command-line options for tritonserver, without those that restrict calls (`restricted`).

    Args:
        repository: the model repository as tritonserver sees it.
        endpoints: where it listens.
        gpu: whether it measures GPUs; where there are none, the log would fill with errors about missing drivers.
        control_mode: what decides which models are loaded: "none" (all, at the start), "explicit" or "poll".
        volumes: a second model repository, whose entries segment whole scans; None without one.
        release: tritonserver's release, such as "26.07". From 25.06 on, whole scans need a further option; from 26.04
            on, shared memory of clients is closed, which none outside a container could use.
    """
    return [
        f"--model-repository={repository}",
        *_for_volumes(volumes, release),
        f"--model-control-mode={control_mode}",
        # Our entries are complete; completing them would start each Python stub twice.
        "--disable-auto-complete-config",
        *_listening("http", endpoints.address, endpoints.http),
        *_listening("grpc", endpoints.address, endpoints.grpc),
        *_listening("metrics", endpoints.address, endpoints.metrics),
        f"--allow-gpu-metrics={str(gpu).lower()}",
        f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
        *(["--allow-client-shm=false"] if release >= SHARING_FROM else []),
    ]


def _for_volumes(repository: str | None, release: str) -> list[str]:
    if repository is None:
        return []
    limit = [LARGEST_BODY] if release >= LIMITED_FROM else []
    return [f"--model-repository={repository}", *VOLUME_OPTIONS, *limit]


def _listening(door: str, address: str, port: int | None) -> list[str]:
    if port is None:
        return [f"--allow-{door}=false"]
    return [f"--{door}-address={address}", f"--{door}-port={port}"]
