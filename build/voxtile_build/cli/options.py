"""Arguments and options that several commands share, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Name = Annotated[str, typer.Argument(metavar="NAME", help="The public name of the model.")]
NewName = Annotated[str, typer.Option("--name", metavar="N", help="The public name of the model.")]
Repository = Annotated[Path, typer.Option("--repository", metavar="DIR", help="Triton model repository.")]
Engines = Annotated[
    list[str] | None,
    typer.Option("--engines", metavar="A,B", help="In place of the spec's; may be given more than once."),
]
Settings = Annotated[
    Path | None,
    typer.Option("--settings", metavar="FILE.toml", help=r"\[serving], \[precision] and \[acceptance] as in a spec."),
]


def split(values: list[str] | None) -> list[str] | None:
    """Values of an option that may be repeated, or hold several with commas; None where it was not given."""
    return [name for group in values or () for name in group.replace(",", " ").split()] or None
