"""`voxtile-server`: the embedded server in the foreground, until it is asked to end or its parent ends."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from voxtile.cli.printable import escaped_lines
from voxtile_server.command_options import options_from, parser_for
from voxtile_server.embedded import EmbeddedServer
from voxtile_server.errors import ServerError
from voxtile_server.options import EMBEDDED_RELEASE, ServerOptions

PARENT_POLL_S = 0.1
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
DEFAULTS = ServerOptions(grpc_port=8001)
PAGE = "docs/how-to/secure.md"
FOR_DEVELOPMENT = f"for development: tritonserver {EMBEDDED_RELEASE} has faults that later releases mend; see {PAGE}"
HTTP_IS_ON = "HTTP is on: whoever reaches it can end this server; for others than yourself, use voxtile-gateway"
METRICS_ARE_ON = "metrics are on: whoever reaches their port can end this server; let Prometheus alone reach it"
SEGMENTATION_FAULT = 128 + signal.SIGSEGV
DESCRIPTION = """\
Serve a model repository with Triton, without Docker. The first start fetches the server (about 0.5 GB). The command
prints the addresses when every model is ready, and ends on Ctrl-C, on SIGTERM, and when its parent process ends.
Exit codes: 0 it was asked to end, 1 the server died, 2 it could not start."""


class _Stopped(Exception):
    """SIGTERM, SIGINT or SIGHUP came, or the parent ended."""


def command_parser() -> argparse.ArgumentParser:
    """The parser of the command's options."""
    parser = parser_for("voxtile-server", DESCRIPTION, DEFAULTS)
    parser.add_argument(
        "--ready-file",
        type=Path,
        metavar="FILE",
        help="written when every model is ready, removed at the end: process id, addresses and models, as JSON",
    )
    parser.add_argument(
        "triton_arguments", nargs="*", metavar="-- OPTION", help="further options for tritonserver, after --"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the server.

    Returns:
        Exit code 0: it was asked to end; 1: tritonserver died; 2: it could not start.
    """
    parsed = command_parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for number in ENDING:
        signal.signal(number, _stop)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    try:
        with EmbeddedServer(parsed.repository, options_from(parsed)) as server:
            _announce(server, parsed.ready_file)
            return _serve(server)
    except ServerError as error:
        sys.stderr.write(escaped_lines(f"error: {error}\n"))
        return 2
    except _Stopped:
        return 0
    finally:
        if parsed.ready_file is not None:
            parsed.ready_file.unlink(missing_ok=True)


def _stop(number: int, frame: FrameType | None) -> None:
    for ignored in ENDING:
        signal.signal(ignored, signal.SIG_IGN)  # a second one must not break the orderly end
    raise _Stopped


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_S)
    os.kill(os.getpid(), signal.SIGTERM)


def _announce(server: EmbeddedServer, ready_file: Path | None) -> None:
    models = server.ready_models()
    http, metrics = _addresses(server)
    sys.stdout.write(
        f"Triton is ready (process {server.pid})\n"
        f"  gRPC     {server.grpc_url}\n"
        f"  HTTP     {http or 'off; --http-port turns it on'}\n"
        f"  metrics  {metrics or 'off; --metrics-port turns them on'}\n"
        f"  models   {', '.join(models) or ('when asked for' if server.options.on_demand else 'none loaded')}\n"
        f"  log      {server.log_file}\n"
        f"  {FOR_DEVELOPMENT}\n"
    )
    if exposed := _exposed(server):
        sys.stdout.write(f"  {exposed}\n")
    sys.stdout.flush()
    if ready_file is not None:
        _write_ready_file(server, models, ready_file)


def _addresses(server: EmbeddedServer) -> tuple[str | None, str | None]:
    """Where HTTP and the metrics are; None for what is off."""
    http, metrics = server.options.http_port, server.options.metrics_port
    return (None if http is None else server.http_url), (None if metrics is None else server.metrics_url)


def _exposed(server: EmbeddedServer) -> str:
    """What the doors by HTTP expose, in words; empty where there is none."""
    http, metrics = _addresses(server)
    return HTTP_IS_ON if http else METRICS_ARE_ON if metrics else ""


def _write_ready_file(server: EmbeddedServer, models: list[str], path: Path) -> None:
    http, metrics = _addresses(server)
    facts = {
        "pid": server.pid,
        "grpc_url": server.grpc_url,
        "http_url": http,
        "metrics_url": metrics,
        "models": models,
        "log_file": str(server.log_file),
    }
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        fresh.replace(path)
    except OSError as error:
        raise ServerError(f"--ready-file: cannot write {path} ({error.strerror})") from error


def _serve(server: EmbeddedServer) -> int:
    code = server.wait()
    exposed = _exposed(server)
    by_http = f" ({exposed})" if code == SEGMENTATION_FAULT and exposed else ""
    sys.stderr.write(escaped_lines(f"error: tritonserver ended with code {code}{by_http}; {server.explain()}\n"))
    return 1
