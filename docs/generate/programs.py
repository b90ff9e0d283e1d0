"""The command lines of the programs, as their own parsers know them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import typer

from voxtile.cli.app import app as client
from voxtile_build.cli.commands import app as build
from voxtile_server.cli import command_parser as server
from voxtile_server.gateway.cli import command_parser as gateway
from voxtile_server.listener.cli import command_parser as listener

APPS = {"voxtile": client, "voxtile-build": build}
PARSERS = {"voxtile-server": server, "voxtile-gateway": gateway, "voxtile-listener": listener}
PROGRAMS = (*APPS, *PARSERS)


@dataclass(frozen=True)
class Parameter:
    """An argument or option: its names, the name of its value ("" for a switch), default and meaning."""

    names: str
    value: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Command:
    """A command: the words that call it, what it does, and its parameters in order."""

    name: str
    what: str
    parameters: tuple[Parameter, ...]


def commands_of(program: str) -> list[Command]:
    """Returns the commands of `program`; its own options, if it has any, stand first."""
    if program not in APPS:
        return [_parsers_command(program)]
    group = _group(program)
    own = [parameter for parameter in group.params if "--help" not in parameter.opts]
    top = [Command(program, str(group.help or APPS[program].info.help or ""), tuple(map(_of_click, own)))]
    return top + [
        Command(f"{program} {name}", str(command.help or ""), tuple(map(_of_click, command.params)))
        for name, command in group.commands.items()
    ]


def parse(words: Sequence[str]) -> None:
    """Parses a command line as its program would. Runs nothing.

    Args:
        words: The program, then its arguments.

    Raises:
        ValueError: The program would refuse the line.
    """
    program, *arguments = words
    if program not in APPS:
        _parse(PARSERS[program](), arguments)
        return
    group = _group(program)
    first, rest = (arguments or [""])[0], arguments[1:]
    if first.startswith("-"):
        if not any(first in parameter.opts for parameter in group.params) and first != "--help":
            raise ValueError(f"{program} has no option {first}")
        return
    if first not in group.commands:
        raise ValueError(f"{program} has no command {first!r}")
    try:
        group.commands[first].make_context(first, list(rest)).close()
    except Exception as error:
        if getattr(error, "exit_code", None) != 0:  # --help ends with 0
            raise ValueError(getattr(error, "message", "") or str(error) or type(error).__name__) from error


def _group(program: str) -> Any:
    return typer.main.get_command(APPS[program])


def _of_click(parameter: Any) -> Parameter:
    """Returns a parameter of click or of typer, which have the same attributes."""
    argument = parameter.param_type_name == "argument"
    switch = getattr(parameter, "is_flag", False)
    value = "" if switch else str(parameter.metavar or ("" if argument else parameter.name.upper()))
    names = value if argument else ", ".join([*parameter.opts, *parameter.secondary_opts])
    meaning = str(parameter.help or "")
    if parameter.envvar:
        meaning += f" The variable `{parameter.envvar}` gives it too."
    default = "required" if parameter.required else _default(parameter.default)
    return Parameter(names, "" if argument else value, default, meaning)


def _default(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    if value is True:
        return "on"
    if value is None or value is False or value == "":
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _parsers_command(program: str) -> Command:
    parser = PARSERS[program]()
    actions = [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]
    return Command(program, str(parser.description or ""), tuple(map(_of_argparse, actions)))


def _of_argparse(action: argparse.Action) -> Parameter:
    switch = action.nargs == 0
    value = "" if switch else str(action.metavar or action.dest.upper())
    if action.choices is not None and action.metavar is None:
        value = "|".join(map(str, action.choices))
    names = ", ".join(action.option_strings)
    default = "required" if action.required else "" if action.default == argparse.SUPPRESS else _default(action.default)
    meaning = str(action.help or "").partition(" (default:")[0]
    return Parameter(names or value, value if names else "", default, meaning)


def _parse(parser: argparse.ArgumentParser, arguments: list[str]) -> None:
    def refuse(message: str) -> None:
        raise ValueError(message)

    parser.error = refuse  # type: ignore[assignment,method-assign]
    try:
        parser.parse_args(arguments)
    except SystemExit as end:  # --help and --version end with 0
        if end.code:
            raise ValueError(f"exit code {end.code}") from None
