"""The page of the commands: every argument and option of the programs."""

from __future__ import annotations

import inspect
import re

from docs.generate.markdown import code, one_line, table
from docs.generate.programs import PROGRAMS, Command, Parameter, commands_of

INTRODUCTION = """\
# Commands

Each program says the same with `--help`. [Exit codes](exit-codes.md) stand on a page of their own. An option without a
value is a switch."""


def page() -> str:
    """Returns the page as Markdown."""
    return "\n\n".join([INTRODUCTION, *(block for program in PROGRAMS for block in _program(program))]) + "\n"


def _program(program: str) -> list[str]:
    top, *rest = commands_of(program)
    return [_blocks(top, 2), *(_blocks(command, 3) for command in rest)]


def _blocks(command: Command, level: int) -> str:
    blocks = [f"{'#' * level} {command.name}", inspect.cleandoc(command.what)]
    if command.parameters:
        rows = [_row(parameter) for parameter in command.parameters]
        blocks.append(table(("argument or option", "default", "meaning"), rows))
    return "\n\n".join(blocks)


def _row(parameter: Parameter) -> tuple[str, str, str]:
    names = f"{parameter.names} {parameter.value}".strip()
    default = parameter.default if parameter.default in ("", "required", "on") else code(parameter.default)
    return code(names), default, one_line(_options_as_code(parameter.meaning))


def _options_as_code(text: str) -> str:
    """Returns `text` with each --option as code, so that its hyphens stay two."""
    return re.sub(r"(?<![`\w-])(--[a-z][a-z-]*)", r"`\1`", text)
