"""`voxtile-server`: the server in the foreground, until it is asked to end or its parent ends."""

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

from voxtile_server.embedded import READY_TIMEOUT_S, EmbeddedServer
from voxtile_server.errors import ServerError

PARENT_POLL_S = 0.1
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
FREE = "0 chooses a free one"


class _Stopped(Exception):
    """SIGTERM, SIGINT, SIGHUP, or the parent's end."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the server. Exit code 0: it was asked to end; 2: it could not start; 1: tritonserver died."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for number in ENDING:
        signal.signal(number, _stop)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    try:
        with _server(options) as server:
            _announce(server, options.ready_file)
            return _serve(server)
    except ServerError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except _Stopped:
        return 0
    finally:
        if options.ready_file is not None:
            options.ready_file.unlink(missing_ok=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="voxtile-server", description="Run the embedded Triton.")
    add = parser.add_argument
    add("--repository", type=Path, required=True, help="folder of model entries")
    add("--http-port", type=int, default=8000, help=f"{FREE} (default 8000)")
    add("--grpc-port", type=int, default=8001, help=f"{FREE} (default 8001)")
    add("--metrics-port", type=int, default=8002, help=f"{FREE} (default 8002)")
    add("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    add("--log-file", type=Path, help="append tritonserver's log to this file")
    add("--threads", type=int, help="CPU threads of an engine whose entry says nothing")
    add("--model-control-mode", choices=("none", "explicit", "poll"), default="none")
    add(
        "--load-model",
        action="append",
        default=[],
        metavar="NAME",
        help="with explicit: load it at the start",
    )
    add("--engines", type=Path, help="folder with numpy<2 and the engines, in place of the fetched one")
    add("--ready-timeout", type=float, default=READY_TIMEOUT_S, help="seconds that loading may take")
    add("--ready-file", type=Path, help="written when ready: pid, addresses and models, as JSON")
    add("extra", nargs="*", metavar="-- OPTION", help="further tritonserver options, after --")
    return parser


def _server(options: argparse.Namespace) -> EmbeddedServer:
    return EmbeddedServer(
        options.repository,
        http_port=options.http_port,
        grpc_port=options.grpc_port,
        metrics_port=options.metrics_port,
        host=options.host,
        log_file=options.log_file,
        threads=options.threads,
        extra_args=options.extra,
        model_control_mode=options.model_control_mode,
        models=options.load_model,
        engines=options.engines,
        ready_timeout_s=options.ready_timeout,
    )


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
    sys.stdout.write(
        f"Triton is ready (process {server.pid})\n"
        f"  gRPC     {server.grpc_url}\n"
        f"  HTTP     {server.http_url}\n"
        f"  metrics  {server.metrics_url}\n"
        f"  models   {', '.join(models) or 'none loaded'}\n"
        f"  log      {server.log_file}\n"
    )
    sys.stdout.flush()
    if ready_file is not None:
        _write_ready_file(server, models, ready_file)


def _write_ready_file(server: EmbeddedServer, models: list[str], path: Path) -> None:
    facts = {
        "pid": server.pid,
        "grpc_url": server.grpc_url,
        "http_url": server.http_url,
        "metrics_url": server.metrics_url,
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
    sys.stderr.write(f"error: tritonserver ended with code {code}; {server.explain()}\n")
    return 1
