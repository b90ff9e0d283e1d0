"""Calls the command `voxtile` in this process, as a user would call it."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner, Result

from voxtile.cli.app import app


def run(*arguments: object) -> Result:
    """The result of `voxtile` with `arguments`."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(result: Result, folder: Path, *kept: str) -> str:
    """The one line of a refusal; nothing but `kept` lies in `folder`."""
    assert result.exit_code == 2, result.output
    assert {path.name for path in folder.iterdir()} == set(kept)
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    return str(lines[0])
