"""Options on the command line, made from the fields of ServerOptions; knows nothing of processes."""

from __future__ import annotations

import argparse
import difflib
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

from voxtile.errors import InputError
from voxtile.places.address import check_paths
from voxtile_server import __version__
from voxtile_server.options import ServerOptions


class OneLineParser(argparse.ArgumentParser):
    """A parser that tells a wrong command line in one line, such as an address where it expects a path."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's; an unknown option comes before others that are missing, and is told with the nearest one."""
        given = list(sys.argv[1:] if args is None else args)
        own = given[: given.index("--")] if "--" in given else given
        for word in (one.partition("=")[0] for one in own if one.startswith("--")):
            if not any(flag.startswith(word) for flag in self._option_string_actions):  # argparse takes abbreviations
                near = difflib.get_close_matches(word, self._option_string_actions, 1)
                self.error(f"no such option: {word}{f' (did you mean {near[0]}?)' if near else ''}")
        found, rest = super().parse_known_args(args, namespace)
        try:
            check_paths(vars(found).values())
        except InputError as error:
            self.error(str(error))
        return found, rest

    def error(self, message: str) -> NoReturn:
        """Ends the process with exit code 2."""
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def parser_for(program: str, description: str, defaults: ServerOptions) -> argparse.ArgumentParser:
    """A parser with --repository, --version and an option for each field of ServerOptions.

    Args:
        program: what the help calls the command.
        description: what it does, in a sentence.
        defaults: the values of options that are not given.
    """
    parser = OneLineParser(prog=program, description=description)
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
