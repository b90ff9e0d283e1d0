"""`python -m voxtile_server.run_with --repository DIR -- COMMAND …`: run a command while the embedded server is up.

The command finds the server's gRPC address in the environment variable VOXTILE_URL, where `voxtile` looks for it.
Ends with the command's exit code, or with 2 where the server could not start.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from voxtile_server.embedded import EmbeddedServer
from voxtile_server.errors import ServerError


def main(arguments: Sequence[str] | None = None) -> int:
    """Start the server on free ports, run the command, stop the server."""
    parser = argparse.ArgumentParser(prog="python -m voxtile_server.run_with", description=__doc__.partition("\n")[0])
    parser.add_argument("--repository", type=Path, required=True, help="folder of model entries")
    parser.add_argument("--log-file", type=Path, help="append tritonserver's log to this file")
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="what to run, after --")
    options = parser.parse_args(arguments)
    try:
        with EmbeddedServer(options.repository, log_file=options.log_file) as server:
            return subprocess.run(options.command, env={**os.environ, "VOXTILE_URL": server.grpc_url}).returncode
    except ServerError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
