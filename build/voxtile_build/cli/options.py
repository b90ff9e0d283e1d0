"""Arguments and options that several commands share, each declared once."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from voxtile_build.spec.engines import ENGINE_NAMES
from voxtile_build.spec.name import LARGEST_VERSION

CHECKPOINT = "checkpoint_final.pth"
LARGEST = 32_768
"""Voxels along an axis that a NIfTI-1 file can hold, and one more."""

Name = Annotated[str, typer.Argument(metavar="NAME", help="The public name of the model.")]
NameOrVersion = Annotated[
    str, typer.Argument(metavar="NAME[@N]", help="The public name of the model; with @N, a version of it.")
]
NewName = Annotated[str, typer.Option("--name", metavar="N", help="The public name of the model.")]
NewVersion = Annotated[
    int | None,
    typer.Option(
        "--version",
        metavar="N",
        min=1,
        max=LARGEST_VERSION,
        help="Build this version; one that is there is replaced. Left out: the next one, or that of the very model.",
    ),
]
Repository = Annotated[Path, typer.Option("--repository", metavar="DIR", help="Triton model repository.")]
Engines = Annotated[
    list[str] | None,
    typer.Option("--engines", metavar="A,B", help="In place of the spec's; may be given more than once."),
]
Settings = Annotated[
    Path | None,
    typer.Option("--settings", metavar="FILE.toml", help=r"\[serving], \[precision] and \[acceptance] as in a spec."),
]
Folds = Annotated[
    list[str] | None,
    typer.Option("--folds", "-f", metavar="0 1 …|all", help="Left out: every fold that was trained."),
]
Checkpoint = Annotated[str, typer.Option("--checkpoint", "-chk", help="File in each fold.")]
Configuration = Annotated[
    str | None,
    typer.Option("--configuration", "-c", help="3d_fullres, 3d_lowres, 2d, …; chooses where FOLDER holds several."),
]
TrainerKeepsNetwork = Annotated[
    bool,
    typer.Option(
        "--trainer-keeps-network",
        help="You have read the trainer's class: it builds the plan's network. Needed for trainers of your own.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]

SEVERAL = {
    "--folds": re.compile("(fold_)?([0-9]+|all)"),
    "-f": re.compile("(fold_)?([0-9]+|all)"),
    "--engines": re.compile("|".join(ENGINE_NAMES)),
}
"""Options that take several values, and what a value looks like: what comes after them may be an argument."""


def join_values(arguments: Iterable[str]) -> list[str]:
    """The arguments with the values of such an option in one: `--folds 0 1`, as nnU-Net takes it, is `--folds 0,1`."""
    joined: list[str] = []
    values: re.Pattern[str] | None = None
    given = False
    for word in arguments:
        if values and given and values.fullmatch(word):
            joined[-1] += f",{word}"
            continue
        values, given = (values, True) if values and not given else (SEVERAL.get(word), False)
        joined.append(word)
    return joined


def split(values: list[str] | None) -> list[str] | None:
    """Values of an option that may be repeated, or hold several with commas; None where it was not given."""
    return [name for group in values or () for name in group.replace(",", " ").split()] or None


def sizes(option: str, text: str) -> tuple[float, float, float]:
    """The three numbers of an option such as 512x512x300.

    Raises:
        typer.BadParameter: it is anything else.
    """
    try:
        x, y, z = (float(part) for part in text.lower().replace("×", "x").split("x"))
    except ValueError:
        x = y = z = math.nan
    if not all(0 < value < LARGEST for value in (x, y, z)):
        raise typer.BadParameter(f"{option}: expected three numbers above 0, such as 512x512x300, found {text!r}")
    return x, y, z
