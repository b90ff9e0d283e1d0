"""`python -m voxtile_server.run_with --repository DIR -- COMMAND …`: run a command while the embedded server is up.

The command finds the server's gRPC address in the environment variable VOXTILE_URL, where `voxtile` looks for it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

from voxtile_server.command_options import options_from, parser_for
from voxtile_server.embedded import EmbeddedServer
from voxtile_server.errors import ServerError
from voxtile_server.options import ServerOptions

DESCRIPTION = """\
Start the embedded server, by default on free ports, run a command, and stop the server. The command finds the gRPC
address in the environment variable VOXTILE_URL. Exit code: the command's, or 2 where the server could not start."""

PASSED_ON = (signal.SIGTERM, signal.SIGUSR1)
"""The command puts its work in order, and the server lives until it has."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Start the server, run the command, stop the server.

    Returns:
        The command's exit code, 2 where the server or the command could not start, 130 after Ctrl-C.
    """
    parser = parser_for("python -m voxtile_server.run_with", DESCRIPTION, ServerOptions())
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="what to run, after --")
    parsed = parser.parse_args(arguments)
    try:
        if shutil.which(parsed.command[0]) is None:
            raise ServerError(f"there is no program {parsed.command[0]!r} to run; give one after --")
        with EmbeddedServer(parsed.repository, options_from(parsed)) as server:
            return _run(parsed.command, {**os.environ, "VOXTILE_URL": server.grpc_url})
    except ServerError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130


def _run(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Runs the command, and passes on to it the signals by which a scheduler ends a job."""
    process = subprocess.Popen(command, env=environment)

    def pass_on(number: int, _: object) -> None:
        process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in PASSED_ON}
    try:
        return process.wait()
    except KeyboardInterrupt:  # a terminal has interrupted the command too
        process.wait()
        raise
    finally:
        process.kill()
        process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
