"""Options declared once, as a dataclass, become the options of a command."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from voxtile.cli.parameters import expand_options


@dataclass(frozen=True)
class Shared:
    """Some options."""

    count: Annotated[int, typer.Option("--count", min=1, help="How many.")] = 3
    names: Annotated[list[str], typer.Option("--name")] = field(default_factory=list)
    file: Annotated[Path | None, typer.Option()] = None


def command(
    word: Annotated[str, typer.Argument()], shared: Shared, loud: Annotated[bool, typer.Option()] = False
) -> None:
    """Say it."""
    typer.echo(f"{word} {shared} {loud}")


def called(*arguments: str) -> str:
    app = typer.Typer()
    app.command()(expand_options(command))
    result = CliRunner().invoke(app, arguments)
    return result.output if result.exit_code == 0 else f"{result.exit_code}"


def test_the_command_gets_the_dataclass() -> None:
    assert called("hi") == f"hi {Shared()} False\n"
    given = called("hi", "--count", "5", "--name", "a", "--name", "b", "--file", "f.txt", "--loud")
    assert given == f"hi {Shared(5, ['a', 'b'], Path('f.txt'))} True\n"


def test_declared_limits_hold() -> None:
    assert called("hi", "--count", "0") == "2"


def test_the_help_names_every_option() -> None:
    text = called("--help")
    for word in ("Say it.", "--count", "How many.", "--name", "--file", "--loud"):
        assert word in text


def test_two_fields_of_one_name_are_refused() -> None:
    def twice(count: int, shared: Shared) -> None: ...

    with pytest.raises(ValueError, match="duplicate parameter name"):
        expand_options(twice)
