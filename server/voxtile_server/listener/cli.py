"""`voxtile-listener`: the listener in the foreground, until it is asked to end."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from voxtile.cli.printable import escaped_lines
from voxtile_server import __version__, behind
from voxtile_server.command_options import OneLineParser

if TYPE_CHECKING:
    from voxtile.triton.connection import ConnectionConfig
    from voxtile_server.listener.settings import Settings

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PRIVATE = 0o077
"""What is taken away from the rights to new files: nobody else may read a scan."""

DESCRIPTION = """\
Take DICOM series as a node (storage SCP), segment each once it is complete, and store what was found in a PACS.
FILE says who may call, which series are segmented, by which model, and where the objects go: docs/how-to/listener.md.
Exit codes: 0 it was asked to end, or did what it was asked for; 2 it could not start, or a check failed."""


def command_parser() -> argparse.ArgumentParser:
    """The parser of the command's options."""
    parser = OneLineParser(prog="voxtile-listener", description=DESCRIPTION)
    add = parser.add_argument
    add("settings", type=Path, metavar="FILE", help="the settings, as TOML")
    add("--version", action="version", version=f"voxtile-listener {__version__}")
    add("--url", action="append", metavar="HOST:PORT", help="gRPC service of a Triton server; several are used as one "
        "(default: the environment variable VOXTILE_URL, or localhost:8001)")  # fmt: skip
    add("--check", action="store_true", help="check the settings, the models and the PACS, and end")
    add("--complete", metavar="CASE", help="say that a case that waits is complete, by its name in the audit, and end")
    behind.add_options(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the listener.

    Returns:
        Exit code 0: it was asked to end, or did what it was asked for; 2: it could not start, or a check failed.
    """
    parsed = command_parser().parse_args(arguments)
    os.umask(PRIVATE)
    try:
        return _run(parsed)
    except ModuleNotFoundError as error:
        if error.name == "tomllib":
            sys.stderr.write("error: the listener needs Python 3.11 or newer\n")
            return 2
        sys.stderr.write(
            f'error: the listener needs {error.name}, which is not installed: pip install "voxtile-server[listener]"\n'
        )
    except (ValueError, OSError) as error:
        sys.stderr.write(escaped_lines(f"error: {error}\n"))
    return 2


def _run(parsed: argparse.Namespace) -> int:
    from voxtile.errors import VoxtileError
    from voxtile_server.listener.settings import load_settings

    urls = tuple(parsed.url or [os.environ.get("VOXTILE_URL") or "localhost:8001"])
    try:
        settings = load_settings(parsed.settings)
        connection = behind.connection(parsed, urls)
        if parsed.complete is not None:
            return _say_complete(settings, parsed.complete)
        if parsed.check:
            return _check(settings, urls, connection)
        return _listen(settings, urls, connection)
    except VoxtileError as error:
        raise ValueError(error) from None


def _listen(settings: Settings, urls: tuple[str, ...], connection: ConnectionConfig) -> int:
    from voxtile_server.listener.listening import listening

    stopping = threading.Event()
    for number in ENDING:
        signal.signal(number, lambda *_: stopping.set())
    with listening(settings, urls, connection) as port:
        title, host = settings.listen.aet, settings.listen.host
        sys.stdout.write(f"the listener is {title}@{host}:{port}, in front of {', '.join(urls)}\n")
        sys.stdout.flush()
        stopping.wait()
    return 0


def _say_complete(settings: Settings, case: str) -> int:
    if not (case.isalnum() and (settings.spool / "series" / case).is_dir()):
        raise ValueError(
            f"--complete: expected the name of a case in {settings.spool}, as the audit has it, found none"
        )
    (settings.spool / "told" / case).touch()
    return 0


def _check(settings: Settings, urls: tuple[str, ...], connection: ConnectionConfig) -> int:
    """Says of each rule's model and of each PACS whether it can be used."""
    from voxtile.errors import VoxtileError, in_one_line
    from voxtile.pacs.store import check_reachable
    from voxtile_server.listener.making import check_rule

    checks: dict[str, Callable[[], None]] = {
        f"rule {rule.name}": partial(check_rule, rule, urls, connection, settings.limits.max_ram_mib)
        for rule in settings.rule
    }
    checks |= {f"PACS {name}": partial(check_reachable, *settings.reach(name)) for name in settings.pacs}
    code = 0
    for name, check in checks.items():
        said = "ok"
        try:
            check()
        except VoxtileError as error:
            said, code = in_one_line(error), 2
        sys.stdout.write(escaped_lines(f"{name}: {said}\n"))
    return code
