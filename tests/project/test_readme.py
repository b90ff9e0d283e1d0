"""The README says only what is there: verbs, paths, commands and the measured table."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from voxtile.cli.app import app as client
from voxtile_build.cli.commands import app as build

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = {"voxtile": client, "voxtile-build": build}


def shell_lines() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    return [line.partition("#")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def test_every_make_verb_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z]+(?:-[a-z]+)*)", README))
    assert named <= targets
    assert targets - named == set()


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", README))
def test_every_link_leads_somewhere(link: str) -> None:
    assert (ROOT / link).exists()


def option_names(app: typer.Typer, command: str) -> set[str]:
    group = typer.main.get_command(app)
    found = group.commands[command]
    return {name for parameter in found.params for name in (*parameter.opts, *parameter.secondary_opts)}


@pytest.mark.parametrize("line", [line for line in shell_lines() if line.split()[0] in COMMANDS])
def test_every_command_line_is_one(line: str) -> None:
    program, command, *arguments = shlex.split(line)
    options = {argument for argument in arguments if argument.startswith("-")}
    assert options <= option_names(COMMANDS[program], command)
    assert CliRunner().invoke(COMMANDS[program], [command, "--help"]).exit_code == 0
