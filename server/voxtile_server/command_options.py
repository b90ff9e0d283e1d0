"""Options on the command line, made from the fields of ServerOptions; knows nothing of processes."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

from voxtile_server import __version__
from voxtile_server.options import ServerOptions


def parser_for(program: str, description: str, defaults: ServerOptions) -> argparse.ArgumentParser:
    """A parser with --repository, --version and an option for each field of ServerOptions.

    Args:
        program: what the help calls the command.
        description: what it does, in a sentence.
        defaults: the values of options that are not given.
    """
    parser = argparse.ArgumentParser(prog=program, description=description)
    parser.add_argument("--version", action="version", version=f"voxtile-server {__version__}")
    parser.add_argument("--repository", type=Path, required=True, metavar="DIR", help="folder of model entries")
    for name, hint in get_type_hints(ServerOptions, include_extras=True).items():
        for option in getattr(hint, "__metadata__", ()):
            default = getattr(defaults, name)
            shown = f" (default: {default})" if default not in (None, (), 0) else ""
            parser.add_argument(
                option.flag,
                dest=name,
                default=list(default) if isinstance(default, tuple) else default,
                help=option.help + shown,
                **option.argparse,
            )
    return parser


def options_from(parsed: argparse.Namespace) -> ServerOptions:
    """The options that were given.

    Raises:
        ServerError: a value that cannot be.
    """
    names = {field.name for field in fields(ServerOptions)}
    values: dict[str, Any] = {name: value for name, value in vars(parsed).items() if name in names}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return ServerOptions(**values)
