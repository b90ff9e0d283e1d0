"""`voxtile-gateway`: the gateway in the foreground, until it is asked to end."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from voxtile.cli.printable import escaped_lines
from voxtile.errors import VoxtileError
from voxtile_server import __version__, behind
from voxtile_server.command_options import OneLineParser

DESCRIPTION = """\
Serve masks over HTTP, in front of any Triton server with models of voxtile-build:
curl -fT scan.nii.gz http://HOST:PORT/v1/models/NAME/mask -o mask.nii.gz
Exit codes: 0 it was asked to end, 2 it could not start."""


def command_parser() -> argparse.ArgumentParser:
    """The parser of the command's options."""
    parser = OneLineParser(prog="voxtile-gateway", description=DESCRIPTION)
    add = parser.add_argument
    add("--version", action="version", version=f"voxtile-gateway {__version__}")
    default = os.environ.get("VOXTILE_URL")
    add("--url", action="append", metavar="HOST:PORT", help="gRPC service of a Triton server; several are used as one "
        "(default: the environment variable VOXTILE_URL, or localhost:8001)")  # fmt: skip
    parser.set_defaults(default_url=default or "localhost:8001")
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on (default: 127.0.0.1)")
    add("--port", type=int, default=8080, metavar="PORT", help="port to listen on (default: 8080)")
    add("--at-once", type=int, default=1, metavar="N", help="scans that are segmented at once (default: 1)")
    add("--waiting", type=int, default=8, metavar="N", help="scans that may wait; a further one gets 429 (default: 8)")
    add("--max-upload", type=float, default=2048, metavar="MIB", help="largest body of a request (default: 2048)")
    add("--max-ram", type=float, metavar="MIB", help="most memory for one scan; without it, no limit")
    add("--keep", type=float, default=600, metavar="SECONDS", help="how long masks of jobs are kept (default: 600)")
    add("--upload-timeout", type=float, default=30, metavar="SECONDS",
        help="an upload is given up after so long without a byte (default: 30)")  # fmt: skip
    add("--token-file", type=Path, metavar="FILE", help="bearer tokens, one a line; without it, everybody may call")
    add(
        "--allow-origin", action="append", default=[], metavar="ORIGIN", help="a web origin that browsers may call from"
    )
    add(
        "--folder", type=Path, metavar="DIR", help="where scans and masks lie meanwhile (default: the temporary folder)"
    )
    add("--datastore", type=float, default=4096, metavar="MIB",
        help="most that images, labels and sessions of MONAI Label take; 0 for none (default: 4096)")  # fmt: skip
    add("--datastore-keep", type=float, default=3600, metavar="SECONDS",
        help="how long one of these is kept after its last use (default: 3600)")  # fmt: skip
    add("--tls-certificate", type=Path, metavar="FILE", help="PEM: this server's certificate, for https")
    add("--tls-key", type=Path, metavar="FILE", help="PEM: its private key")
    behind.add_options(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the gateway.

    Returns:
        Exit code 0: it was asked to end; 2: it could not start.
    """
    parsed = command_parser().parse_args(arguments)
    try:
        return _run(parsed)
    except ModuleNotFoundError as error:
        sys.stderr.write(
            f'error: the gateway needs {error.name}, which is not installed: pip install "voxtile-server[gateway]"\n'
        )
    except (ValueError, OSError, VoxtileError) as error:
        sys.stderr.write(escaped_lines(f"error: {error}\n"))
    return 2


def _run(parsed: argparse.Namespace) -> int:
    import uvicorn

    from voxtile.io.private_folder import private_folder
    from voxtile_server.gateway.app import make_app
    from voxtile_server.gateway.settings import Settings

    if (parsed.tls_certificate is None) != (parsed.tls_key is None):
        raise ValueError("--tls-certificate and --tls-key go together; give both")
    if parsed.folder is not None and not parsed.folder.is_dir():
        raise ValueError(f"--folder: expected a folder, found none at {parsed.folder}; make it first")
    with private_folder("gateway", parsed.folder):
        pass  # it can be made: the app makes its own when the gateway listens already
    urls = tuple(parsed.url or [parsed.default_url])
    connection = behind.connection(parsed, urls)
    settings = Settings(
        urls=urls,
        connection=connection,
        at_once=parsed.at_once,
        waiting=parsed.waiting,
        max_upload_mib=parsed.max_upload,
        max_ram_mib=parsed.max_ram,
        keep_s=parsed.keep,
        upload_timeout_s=parsed.upload_timeout,
        token_file=parsed.token_file,
        origins=tuple(parsed.allow_origin),
        folder=parsed.folder,
        datastore_mib=parsed.datastore,
        datastore_keep_s=parsed.datastore_keep,
    )
    app = make_app(settings)

    class Server(uvicorn.Server):
        """Ends the jobs first, so that whoever watches one is told, and no connection has to be cut."""

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            await app.state.intake.board.close()
            await super().shutdown(sockets)

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,  # paths hold jobs' secret numbers
        ssl_certfile=parsed.tls_certificate,
        ssl_keyfile=parsed.tls_key,
        timeout_graceful_shutdown=1,
    )
    listening = _listening(parsed.host, parsed.port)
    host, port = listening.getsockname()[:2]
    sys.stdout.write(f"the gateway listens on {host}:{port}, in front of {', '.join(settings.urls)}\n")
    sys.stdout.flush()
    signal.signal(signal.SIGTERM, _end)
    with contextlib.suppress(KeyboardInterrupt, _Ended):  # uvicorn repeats a signal after an orderly end
        Server(config).run(sockets=[listening])
    return 0


class _Ended(Exception):
    """SIGTERM came."""


def _end(number: int, frame: FrameType | None) -> None:
    raise _Ended


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        OSError: the port is taken, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OSError(f"cannot listen on {host}:{port}: {reason}; choose another with --host and --port") from error
